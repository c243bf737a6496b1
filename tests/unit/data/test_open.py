"""The built-in digits, lazy imports, and the shared real sets."""

import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from autoguidance.data import open_data


def test_digits_are_scikit_learns() -> None:
    from sklearn.datasets import load_digits

    truth = load_digits()
    source = open_data("digits")
    assert (source.num_images, source.resolution, source.channels) == (1797, 8, 1)
    assert source.class_names == tuple("0123456789")
    np.testing.assert_array_equal(source.class_idx, truth.target)
    expected = [[round(value * 255 / 16) for value in row] for row in truth.images[5]]
    assert source.read([5])[0, 0].tolist() == expected
    assert source.read(range(1797)).max() == 255


def test_importing_the_folder_imports_nothing_heavy() -> None:
    heavy = ("PIL", "sklearn", "datasets", "pyarrow", "matplotlib", "typer", "rich")
    code = f"import autoguidance.data, sys; print([name for name in {heavy!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_hand_drawn_tiles_with_transparency(shared: Callable[[str], Path], tmp_path: Path) -> None:
    with tarfile.open(shared("data/crawl-tiles-32.tar.xz")) as archive:
        archive.extractall(tmp_path, filter="data")
    source = open_data(tmp_path / "crawl-tiles-32")
    assert (source.num_images, source.resolution, source.channels, source.num_classes) == (3984, 32, 3, 7)
    assert source.survey.modes["RGBA"] > 1000
    assert source.read(range(0, 3984, 8))[:, :, 0, 0].float().mean() > 128  # most tiles' corners are transparent: white
