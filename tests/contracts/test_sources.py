"""One suite for every kind of image set: the same content gives the same images, labels and fingerprint."""

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from autoguidance.data import ImageSource, open_data
from autoguidance.errors import UserError

NAMES = ("cat", "dog")
PIXELS = np.random.default_rng(0).integers(0, 256, (9, 8, 8, 3), dtype=np.uint8)
CLASSES = np.array([0, 0, 0, 0, 1, 1, 1, 1, 1])


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def files(pixels: np.ndarray, classes: np.ndarray) -> dict[str, bytes]:
    return {
        f"{NAMES[label]}/{index}.png": png(image)
        for index, (image, label) in enumerate(zip(pixels, classes, strict=True))
    }


def edm2_files(pixels: np.ndarray, classes: np.ndarray) -> dict[str, bytes]:
    images = {f"00000/img{index:08d}.png": png(image) for index, image in enumerate(pixels)}
    document = {
        "labels": [[name, int(label)] for name, label in zip(images, classes, strict=True)],
        "class_names": NAMES,
    }
    return {**images, "dataset.json": json.dumps(document).encode()}


def folder(path: Path, members: dict[str, bytes]) -> Path:
    for name, content in members.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def npz(path: Path, pixels: np.ndarray, classes: np.ndarray) -> Path:
    np.savez(path, images=pixels, labels=classes, class_names=np.array(NAMES))
    return path


def saved(path: Path, pixels: np.ndarray, classes: np.ndarray) -> Path:
    datasets = pytest.importorskip("datasets", reason="needs the datasets extra")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(NAMES))})
    rows = {"image": [{"bytes": png(image), "path": None} for image in pixels], "label": classes.tolist()}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(path)
    return path


Make = Callable[[Path, np.ndarray, np.ndarray], Path]
KINDS: dict[str, Make] = {
    "folder": lambda path, pixels, classes: folder(path / "set", files(pixels, classes)),
    "folder with dataset.json": lambda path, pixels, classes: folder(path / "set", edm2_files(pixels, classes)),
    "zip": lambda path, pixels, classes: zipped(path / "set.zip", files(pixels, classes)),
    "zip with dataset.json": lambda path, pixels, classes: zipped(path / "set.zip", edm2_files(pixels, classes)),
    "npz": lambda path, pixels, classes: npz(path / "set.npz", pixels, classes),
    "hugging face": lambda path, pixels, classes: saved(path / "set", pixels, classes),
}


@pytest.fixture(params=KINDS, scope="module")
def kind(request: pytest.FixtureRequest) -> Make:
    return KINDS[request.param]


@pytest.fixture(params=[2 << 30, 0], ids=["in memory", "decoded again"])
def source(request: pytest.FixtureRequest, kind: Make, tmp_path: Path) -> ImageSource:
    return open_data(kind(tmp_path, PIXELS, CLASSES), max_bytes_in_memory=request.param)


def test_attributes(source: ImageSource) -> None:
    assert isinstance(source, ImageSource)
    assert source.name == "set"
    assert (source.num_images, source.resolution, source.channels) == (9, 8, 3)
    assert (source.class_names, source.num_classes) == (NAMES, 2)
    assert source.class_idx is not None
    assert source.class_idx.dtype == np.int64
    np.testing.assert_array_equal(source.class_idx, CLASSES)


@pytest.mark.parametrize("indices", [[3], [8, 0, 0, 5], range(9), np.array([1, 2]), torch.tensor([7, 7]), []])
def test_read_in_any_order_with_repeats(source: ImageSource, indices: object) -> None:
    images = source.read(indices)  # type: ignore[arg-type]
    chosen = [int(index) for index in indices]  # type: ignore[attr-defined]
    assert images.dtype == torch.uint8
    assert images.is_contiguous()
    np.testing.assert_array_equal(images, PIXELS.transpose(0, 3, 1, 2)[chosen])


def test_the_caller_owns_what_is_read(source: ImageSource) -> None:
    source.read([2]).zero_()
    np.testing.assert_array_equal(source.read([2])[0], PIXELS[2].transpose(2, 0, 1))


@pytest.mark.parametrize("indices", [[9], [-1], [0, 100]])
def test_indices_out_of_range(source: ImageSource, indices: list[int]) -> None:
    with pytest.raises(UserError, match=r"the set has 0 \.\. 8"):
        source.read(indices)


def test_the_fingerprint_is_of_content(source: ImageSource, kind: Make, tmp_path: Path) -> None:
    reference = open_data(npz(tmp_path / "reference.npz", PIXELS, CLASSES))
    assert source.fingerprint == reference.fingerprint
    one_bit, one_label = PIXELS.copy(), CLASSES.copy()
    one_bit[4, 3, 2, 1] ^= 1
    one_label[4] = 0
    for number, changed in enumerate(
        [(one_bit, CLASSES), (PIXELS, one_label), (PIXELS[[1, 0, *range(2, 9)]], CLASSES)]
    ):
        place = tmp_path / str(number)
        place.mkdir()
        assert open_data(kind(place, *changed)).fingerprint != source.fingerprint


def test_the_fingerprint_is_as_documented(source: ImageSource) -> None:
    import hashlib

    content = PIXELS.transpose(0, 3, 1, 2).tobytes() + CLASSES.astype("<i8").tobytes()
    content += json.dumps({"shape": [9, 3, 8, 8], "class_names": list(NAMES)}).encode()
    assert source.fingerprint == hashlib.sha256(content).hexdigest()


def test_resolution(kind: Make, tmp_path: Path) -> None:
    place = kind(tmp_path, PIXELS, CLASSES)
    small, again = open_data(place, resolution=4), open_data(place, resolution=4, max_bytes_in_memory=0)
    assert small.resolution == 4
    np.testing.assert_array_equal(small.read(range(9)), again.read(range(9)))
    assert open_data(place, resolution=8).fingerprint == open_data(place).fingerprint
