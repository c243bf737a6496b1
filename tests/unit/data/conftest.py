"""Small sets of images, made to order."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """make_folder({"cat/1.png": array, "notes.txt": b"..."}) writes arrays as images and bytes as they are."""

    def make(files: dict[str, np.ndarray | bytes | Image.Image], name: str = "my_images") -> Path:
        root = tmp_path / name
        for file, content in files.items():
            path = root / file
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                path.write_bytes(content)
            elif isinstance(content, Image.Image):
                content.save(path)
            else:
                Image.fromarray(content).save(path)
        return root

    return make


@pytest.fixture
def rgb() -> Callable[..., np.ndarray]:
    """rgb(seed, size=8) is a random image [size, size, 3] that no lossless format changes."""
    return lambda seed, size=8: np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
