"""Hostile and damaged zips are refused by name, without reading more than they declare."""

import io
import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import autoguidance.data.zipped as zipped
from autoguidance.data import DataError, open_data
from autoguidance.errors import UserError

Rgb = Callable[..., np.ndarray]


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def make_zip(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def problems(path: Path) -> dict[str, str]:
    with pytest.raises(DataError) as caught:
        open_data(path)
    return {problem.where: problem.what for problem in caught.value.problems}


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_zip_with_labels(tmp_path: Path, rgb: Rgb, compression: int) -> None:
    names = [f"00000/img{index:08d}.png" for index in range(3)]
    labels = json.dumps({"labels": [[name, index] for index, name in enumerate(names)]}).encode()
    members = {**{name: png(rgb(index)) for index, name in enumerate(names)}, "dataset.json": labels, "note.txt": b""}
    source = open_data(make_zip(tmp_path / "set.zip", members, compression))
    assert source.class_idx is not None
    assert source.class_idx.tolist() == [0, 1, 2]
    assert source.name == "set"
    assert source.survey.ignored == {"txt": 1}
    np.testing.assert_array_equal(source.read([2])[0], rgb(2).transpose(2, 0, 1))


@pytest.mark.parametrize(
    "name", ["../../evil.png", "/etc/evil.png", "a/../../evil.png", "C:\\evil.png", "..\\evil.png"]
)
def test_names_that_lead_out_are_refused(tmp_path: Path, rgb: Rgb, name: str) -> None:
    found = problems(make_zip(tmp_path / "set.zip", {"good.png": png(rgb(0)), name: png(rgb(1))}))
    assert list(found.values()) == ["a name that leads out of the folder"]


def test_a_huge_member_is_refused_by_its_declared_size(
    tmp_path: Path, rgb: Rgb, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zipped, "MAX_FILE_BYTES", 1000)
    path = make_zip(tmp_path / "set.zip", {"0.png": png(rgb(0)), "1.png": b"\0" * 1_000_000}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 3000
    assert problems(path) == {"1.png": "decompression bomb or huge file: 1,000,000 bytes, the limit is 1,000"}


def test_a_member_that_declares_less_than_it_holds(tmp_path: Path, rgb: Rgb, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_zip(
        tmp_path / "set.zip", {"0.png": png(rgb(0)), "1.png": b"\x89PNG" + b"\0" * 50_000_000}, zipfile.ZIP_DEFLATED
    )
    content = path.read_bytes().replace(struct.pack("<I", 50_000_004), struct.pack("<I", 300))
    path.write_bytes(content)
    taken: list[int] = []
    read = zipfile.ZipExtFile.read

    def counting(self: zipfile.ZipExtFile, n: int | None = -1) -> bytes:
        data = read(self, n)
        taken.append(len(data))
        return data

    monkeypatch.setattr(zipfile.ZipExtFile, "read", counting)
    found = problems(path)
    assert found.keys() == {"1.png"}
    assert "damaged in the zip" in found["1.png"]
    assert max(taken, default=0) <= 1000


def test_damaged_members_are_named(tmp_path: Path, rgb: Rgb) -> None:
    good = png(rgb(0))
    path = make_zip(tmp_path / "set.zip", {"0.png": good, "1.png": png(rgb(1)), "2.png": png(rgb(2))[:50]})
    content = bytearray(path.read_bytes())
    content[content.index(png(rgb(1))) + 60] ^= 0xFF
    path.write_bytes(content)
    found = problems(path)
    assert "damaged in the zip: Bad CRC-32" in found["1.png"]
    assert found["2.png"] == "truncated"
    assert len(found) == 2


def test_encrypted_and_repeated_members(tmp_path: Path, rgb: Rgb) -> None:
    path = tmp_path / "set.zip"
    make_zip(path, {"0.png": png(rgb(0)), "1.png": png(rgb(0)), "2.png": png(rgb(0))})
    path.write_bytes(path.read_bytes().replace(b"2.png", b"1.png"))
    assert problems(path) == {"1.png": "2 members have this name"}
    make_zip(path, {"0.png": png(rgb(0))})
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    assert problems(path) == {"0.png": "encrypted"}


@pytest.mark.parametrize("keep", [0, 10, 200])
def test_what_is_no_zip(tmp_path: Path, rgb: Rgb, keep: int) -> None:
    path = make_zip(tmp_path / "set.zip", {"0.png": png(rgb(0))})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"set\.zip is not a zip file, or is truncated"):
        open_data(path)


def test_a_label_file_that_is_damaged_or_too_large(tmp_path: Path, rgb: Rgb, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_zip(tmp_path / "set.zip", {"0.png": png(rgb(0)), "dataset.json": b'{"labels": null}' + b" " * 2000})
    monkeypatch.setattr(zipped, "MAX_FILE_BYTES", 1000)
    with pytest.raises(UserError, match=r"dataset\.json cannot be read \(decompression bomb"):
        open_data(path)
