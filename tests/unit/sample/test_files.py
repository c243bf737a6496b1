"""Sample folders: continued with the same settings, refused with others, nothing lost."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from autoguidance.errors import UserError
from autoguidance.sample import SampleBatch
from autoguidance.sample.files import SampleFolder, join_batches, read_npz, write_npz, write_png

SETTINGS: dict[str, Any] = {"main": "runs/main", "weight": 1.5, "interval": (0.1, 2.0)}


def make_batch(seeds: list[int], channels: int = 1) -> tuple[SampleBatch, torch.Tensor]:
    latents = torch.stack([torch.full((channels, 4, 4), seed / 100) for seed in seeds])
    images = torch.stack([torch.full((channels, 4, 4), seed % 256, dtype=torch.uint8) for seed in seeds])
    images[:, :, 0, 0] = 255
    return SampleBatch(seeds, torch.tensor([seed % 3 for seed in seeds]), latents), images


@pytest.mark.parametrize("channels", [1, 3])
def test_png_holds_the_pixels(tmp_path: Path, channels: int) -> None:
    _, images = make_batch([7], channels)
    write_png(tmp_path / "a.png", images[0])
    pixels = np.asarray(Image.open(tmp_path / "a.png"))
    expected = images[0, 0].numpy() if channels == 1 else images[0].permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(pixels, expected)


def test_png_folder_continues(tmp_path: Path) -> None:
    folder = SampleFolder(tmp_path / "x", SETTINGS)
    assert folder.missing([3, 1, 2]) == [3, 1, 2]
    folder.write(*make_batch([1, 2]))
    again = SampleFolder(tmp_path / "x", SETTINGS)
    assert again.missing([3, 1, 2]) == [3]
    again.finish([1, 2])
    assert sorted(p.name for p in (tmp_path / "x").iterdir()) == ["000001.png", "000002.png", "generation.json"]


def test_npz_folder_continues_and_joins_in_the_order_of_seeds(tmp_path: Path) -> None:
    SampleFolder(tmp_path, SETTINGS, "npz").write(*make_batch([2, 1]))
    folder = SampleFolder(tmp_path, SETTINGS, "npz")
    assert folder.missing([0, 1, 2]) == [0]
    folder.write(*make_batch([0]))
    folder.finish([0, 1, 2])
    arrays = read_npz(folder.npz_path)
    batch, images = make_batch([0, 1, 2])
    assert {name: (value.dtype, value.shape) for name, value in arrays.items()} == {
        "seeds": (np.int64, (3,)),
        "class_idx": (np.int64, (3,)),
        "images": (np.uint8, (3, 1, 4, 4)),
        "latents": (np.float32, (3, 1, 4, 4)),
    }
    assert arrays["seeds"].tolist() == [0, 1, 2]
    assert arrays["class_idx"].tolist() == batch.class_idx.tolist()
    np.testing.assert_array_equal(arrays["images"], images.numpy())
    np.testing.assert_array_equal(arrays["latents"], batch.latents.numpy())
    assert not (tmp_path / ".parts").exists()
    assert SampleFolder(tmp_path, SETTINGS, "npz").missing([2, 5]) == [5]


def test_more_seeds_into_the_same_npz_lose_nothing(tmp_path: Path) -> None:
    for seeds in ([4, 5], [0, 1]):
        folder = SampleFolder(tmp_path, SETTINGS, "npz")
        folder.write(*make_batch(seeds))
        folder.finish(seeds)
    arrays = read_npz(tmp_path / "images.npz")
    assert arrays["seeds"].tolist() == [0, 1, 4, 5]
    np.testing.assert_array_equal(arrays["images"], make_batch([0, 1, 4, 5])[1].numpy())


@pytest.mark.parametrize(
    ("changes", "image_format", "named"),
    [({"weight": 2.0}, "png", "weight"), ({}, "npz", "format"), ({"new": 1, "main": "x"}, "png", "main, new")],
)
def test_other_settings_are_refused(tmp_path: Path, changes: dict[str, Any], image_format: str, named: str) -> None:
    SampleFolder(tmp_path, SETTINGS).write(*make_batch([1]))
    with pytest.raises(UserError, match=rf"other settings \({named}\); choose another output folder"):
        SampleFolder(tmp_path, {**SETTINGS, **changes}, image_format)
    assert (tmp_path / "000001.png").exists()


def test_damaged_record_and_unknown_format(tmp_path: Path) -> None:
    (tmp_path / "generation.json").write_text("[1")
    with pytest.raises(UserError, match=r"generation\.json is not valid JSON"):
        SampleFolder(tmp_path, SETTINGS)
    (tmp_path / "generation.json").write_text("[1]")
    with pytest.raises(UserError, match="other settings"):
        SampleFolder(tmp_path, SETTINGS)
    with pytest.raises(UserError, match="unknown image format 'jpg'"):
        SampleFolder(tmp_path, SETTINGS, "jpg")


def _damage(path: Path, kind: str) -> None:
    content = path.read_bytes()
    if kind == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif kind == "flipped":
        middle = content.index(b"\x93NUMPY", content.index(b"images.npy")) + 130  # in the pixels
        path.write_bytes(
            content[:middle] + bytes(255 - b for b in content[middle : middle + 8]) + content[middle + 8 :]
        )
    elif kind == "garbage":
        path.write_bytes(b"not a zip" * 50)
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "npy":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    elif kind == "pickle":
        np.savez(path, seeds=np.array([{}], dtype=object), class_idx=np.zeros(1), images=np.zeros(1))
    elif kind == "without images":
        np.savez(path, seeds=np.zeros(2), class_idx=np.zeros(2))
    elif kind == "of unequal length":
        np.savez(path, seeds=np.zeros(2), class_idx=np.zeros(2), images=np.zeros((1, 1, 4, 4), np.uint8))
    elif kind == "a folder":
        path.unlink()
        path.mkdir()
    elif kind == "missing":
        path.unlink()


KINDS = (
    *("truncated", "flipped", "garbage", "empty", "npy", "pickle"),
    *("without images", "of unequal length", "a folder", "missing"),
)


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_npz_is_named_in_one_line(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "images.npz"
    write_npz(path, *make_batch([1, 2]))
    _damage(path, kind)
    with pytest.raises(UserError, match=r"images\.npz") as caught:
        read_npz(path)
    assert "\n" not in str(caught.value)


def test_join_batches() -> None:
    joined = join_batches([make_batch([1, 2])[0], make_batch([9])[0]])
    assert joined.seeds == [1, 2, 9]
    assert torch.equal(joined.latents, make_batch([1, 2, 9])[0].latents)
    assert torch.equal(joined.class_idx, make_batch([1, 2, 9])[0].class_idx)


def test_output_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("mine")
    with pytest.raises(UserError, match="cannot create the folder"):
        SampleFolder(tmp_path / "x", SETTINGS)
    assert (tmp_path / "x").read_text() == "mine"
