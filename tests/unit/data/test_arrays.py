"""Array files: which shapes mean what, and what is refused by name."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import autoguidance.data.arrays as arrays
from autoguidance.data import DataError, open_data
from autoguidance.data.source import DecodedSource
from autoguidance.errors import UserError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 1, 0])


@pytest.mark.parametrize("images_key", ["images", "x"])
@pytest.mark.parametrize("labels_key", ["labels", "class_idx", "y"])
def test_npz_keys(tmp_path: Path, images_key: str, labels_key: str) -> None:
    path = tmp_path / "set.npz"
    np.savez_compressed(path, **{images_key: IMAGES, labels_key: LABELS, "seeds": np.arange(5)})
    source = open_data(path)
    assert source.class_idx is not None
    assert source.class_idx.tolist() == LABELS.tolist()
    assert source.class_names == ("0", "1", "2")
    np.testing.assert_array_equal(source.read(range(5)), IMAGES.transpose(0, 3, 1, 2))


@pytest.mark.parametrize(
    "layout",
    [lambda x: x, lambda x: x.transpose(0, 3, 1, 2), lambda x: np.asfortranarray(x)],
    ids=["NHWC", "NCHW", "fortran order"],
)
def test_layouts_of_colour(tmp_path: Path, layout: Callable[[np.ndarray], np.ndarray]) -> None:
    np.save(tmp_path / "set.npy", layout(IMAGES))
    np.savez(tmp_path / "set.npz", images=layout(IMAGES))
    for path in (tmp_path / "set.npy", tmp_path / "set.npz"):
        source = open_data(path)
        assert source.class_idx is None
        np.testing.assert_array_equal(source.read(range(5)), IMAGES.transpose(0, 3, 1, 2))


@pytest.mark.parametrize("shape", [(5, 8, 8), (5, 8, 8, 1), (5, 1, 8, 8), (5, 1, 1, 1), (5, 3, 3, 1), (5, 1, 3, 3)])
def test_layouts_of_grey(tmp_path: Path, shape: tuple[int, ...]) -> None:
    images = RNG.integers(0, 256, shape, dtype=np.uint8)
    np.save(tmp_path / "set.npy", images)
    source = open_data(tmp_path / "set.npy")
    assert source.channels == 1
    np.testing.assert_array_equal(source.read(range(5)).flatten(), images.flatten())


def test_the_fourth_channel_is_opacity_over_white(tmp_path: Path) -> None:
    opacity = RNG.integers(0, 256, (5, 8, 8, 1), dtype=np.uint8)
    np.save(tmp_path / "set.npy", np.concatenate([IMAGES, opacity], axis=3))
    expected = IMAGES * (opacity / 255) + 255 * (1 - opacity / 255)
    found = open_data(tmp_path / "set.npy").read(range(5)).permute(0, 2, 3, 1).numpy()
    assert np.abs(found - expected).max() <= 0.5 + 1e-9


@pytest.mark.parametrize(
    "images, reason",
    [
        (IMAGES.astype(np.float32), "images are float32, not uint8"),
        (IMAGES.astype(np.int64), "images are int64, not uint8"),
        (IMAGES[0, 0], r"shape \[8, 3\]; they must be"),
        (np.zeros((5, 3, 7, 3), np.uint8), "channels and rows cannot be told apart"),
        (np.zeros((5, 8, 8, 2), np.uint8), "without 1, 3 or 4 channels"),
        (np.zeros((0, 8, 8), np.uint8), "holds no images"),
        (np.zeros((2, 0, 0), np.uint8), "no pixels"),
        (np.zeros((2, 8, 6), np.uint8), "6x8, not square; give --resolution N"),
        (np.array([{"a": 1}, None], dtype=object), "Python objects"),
    ],
)
def test_arrays_of_another_kind(tmp_path: Path, images: np.ndarray, reason: str) -> None:
    np.save(tmp_path / "set.npy", images, allow_pickle=True)
    np.savez(tmp_path / "set.npz", images=images)
    for path in (tmp_path / "set.npy", tmp_path / "set.npz"):
        with pytest.raises(UserError, match=reason):
            open_data(path)


@pytest.mark.parametrize(
    "labels, reason",
    [
        (LABELS.astype(float), "labels are float64, not integers"),
        (np.array(["a"] * 5), "labels are <U1, not integers"),
        (np.eye(5, dtype=int), r"labels have shape \[5, 5\] for 5 images"),
        (LABELS[:4], r"labels have shape \[4\] for 5 images"),
        (LABELS - 1, r"2 of 5 files cannot be used: image 0 \(label -1 is out of range"),
        (np.array([None] * 5), "Python objects"),
    ],
)
def test_labels_of_another_kind(tmp_path: Path, labels: np.ndarray, reason: str) -> None:
    np.savez(tmp_path / "set.npz", images=IMAGES, labels=labels)
    with pytest.raises(UserError, match=reason):
        open_data(tmp_path / "set.npz")


def test_labels_that_are_all_minus_one_mean_unlabelled(tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", images=IMAGES.transpose(0, 3, 1, 2), class_idx=np.full(5, -1), seeds=np.arange(5))
    source = open_data(tmp_path / "set.npz")
    assert source.class_idx is None
    assert source.class_names == ()


def test_class_names(tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    np.savez(path, images=IMAGES, labels=LABELS, class_names=np.array(["cat", "dog", "owl", "yak"]))
    assert open_data(path).class_names == ("cat", "dog", "owl", "yak")
    np.savez(path, images=IMAGES, labels=LABELS, class_names=np.array(["cat", "dog"]))
    with pytest.raises(DataError, match=r"image 2 \(label 2 is out of range 0 \.\. 1\)"):
        open_data(path)
    np.savez(path, images=IMAGES, labels=LABELS, class_names=np.arange(3))
    with pytest.raises(UserError, match="class_names is not a list of texts"):
        open_data(path)


def test_missing_and_ambiguous_keys(tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    np.savez(path, data=IMAGES)
    with pytest.raises(UserError, match="holds no images: it has data; save them as"):
        open_data(path)
    np.savez(path, images=IMAGES, x=IMAGES)
    with pytest.raises(UserError, match="holds both 'images' and 'x'"):
        open_data(path)


def test_truncated_and_damaged_files(tmp_path: Path) -> None:
    np.save(tmp_path / "set.npy", IMAGES)
    np.savez(tmp_path / "set.npz", images=IMAGES)
    for path in (tmp_path / "set.npy", tmp_path / "set.npz"):
        content = path.read_bytes()
        for keep in (0, 5, 100, len(content) - 100):
            path.write_bytes(content[:keep])
            with pytest.raises(UserError, match=r"is not a whole \.np[yz] file"):
                open_data(path)
    damaged = bytearray(content)
    damaged[len(content) // 2] ^= 0xFF
    path.write_bytes(damaged)
    with pytest.raises(UserError, match=r"not a whole \.npz file \(Bad CRC-32"):
        open_data(path)


@pytest.mark.parametrize("declared", [(10**12,), (4, 8, 8, 3)])
def test_a_header_that_lies_about_its_size(tmp_path: Path, declared: tuple[int, ...]) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": declared})
    with zipfile.ZipFile(tmp_path / "set.npz", "w") as archive:
        archive.writestr("images.npy", header.getvalue() + b"\0" * 500)
    with pytest.raises(UserError, match=r"images declares [\d,]+ bytes but has 500"):
        open_data(tmp_path / "set.npz")
    (tmp_path / "set.npy").write_bytes(header.getvalue() + b"\0" * 500)
    with pytest.raises(UserError, match=r"not a whole \.npy file"):
        open_data(tmp_path / "set.npy")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_too_large_for_memory_are_mapped(tmp_path: Path, save: Callable[..., None]) -> None:
    save(tmp_path / "set.npz", images=IMAGES, labels=LABELS)
    np.save(tmp_path / "set.npy", IMAGES)
    kept = open_data(tmp_path / "set.npz")
    lazy = open_data(tmp_path / "set.npz", max_bytes_in_memory=100)
    assert isinstance(lazy, DecodedSource)
    assert lazy.fingerprint == kept.fingerprint
    np.testing.assert_array_equal(lazy.read([4, 1]), kept.read([4, 1]))
    mapped = open_data(tmp_path / "set.npy", max_bytes_in_memory=100)
    assert isinstance(mapped, DecodedSource)
    np.testing.assert_array_equal(mapped.read([4, 1]), kept.read([4, 1]))


def test_an_array_that_fits_neither_memory_nor_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "set.npz", images=IMAGES)
    usage = arrays.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(arrays.shutil, "disk_usage", lambda path: usage._replace(free=10))
    with pytest.raises(UserError, match=r"unpacks to 960 bytes and .* has 10 free; save the images as \.npy"):
        open_data(tmp_path / "set.npz", max_bytes_in_memory=100)


def test_resolution_resizes_arrays(tmp_path: Path) -> None:
    np.save(tmp_path / "set.npy", np.full((2, 12, 10, 3), 77, np.uint8))
    source = open_data(tmp_path / "set.npy", resolution=5)
    assert source.read([0, 1]).shape == (2, 3, 5, 5)
    assert (source.read([0, 1]) == 77).all()
