"""A large set of files made part by part, so that a killed command goes on where it stopped and the result appears whole.

Part k holds the results of the images [256 k, 256 k + 256). While a set OUT is being made there is a folder beside it

    .OUT.parts/settings.json      what decides the content; other settings begin anew
    .OUT.parts/000007.zip         a finished part: its members, and record.json with what was learnt on the way

Each part appears by one rename, as `storage.atomic_path` writes it. When all are there they are copied in order into
the result, which appears by one rename too, and the folder is removed: so twice the room is needed for a while. The
result depends on the images and the settings alone, not on the number of workers or kills: members are stored
uncompressed, in order, with one fixed date.

The layout is that of the EDM2 data sets: members `00000/img00000000.png`, a thousand to a directory, and dataset.json
({"labels": [[member, class], ...]} or null). "class_names" and what else is put there are additions that other readers
ignore. OUT is a .zip, or a folder where the name has no suffix.
"""

import json
import os
import shutil
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from autoguidance.data.listing import LABEL_FILE
from autoguidance.errors import UserError
from autoguidance.storage import alone, atomic_path, make_folder, read_json, write_json

PART_IMAGES = 256
_RECORD = "record.json"
_DATE = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip can hold


def member_name(index: int, stem: str, suffix: str) -> str:
    """Name of image `index` in a set: `00000/img00000000.png` for stem "img" and suffix "png"."""
    number = f"{index:08d}"
    return f"{number[:5]}/{stem}{number}.{suffix}"


def label_document(
    members: Sequence[str], class_idx: np.ndarray | None, class_names: Sequence[str], extra: Mapping[str, Any]
) -> dict[str, Any]:
    """Content of dataset.json; `extra` are further entries by name."""
    if class_idx is None:
        return {"labels": None, **extra}
    pairs = [[name, int(label)] for name, label in zip(members, class_idx, strict=True)]
    return {"labels": pairs, "class_names": list(class_names), **extra}


def check_target(out: Path | str, made: Mapping[str, Any]) -> bool:
    """Whether `out` is there already, made with the entries `made` of its dataset.json.

    Raises UserError where its name has another suffix than .zip, or something else is there.
    """
    out = Path(out)
    if out.suffix.lower() not in ("", ".zip"):
        raise UserError(f"--out {out}: give a name that ends in .zip, or a folder's name without a suffix")
    if not out.exists() and not out.is_symlink():
        return False
    try:
        if out.is_dir():
            content = (out / LABEL_FILE).read_bytes()
        else:
            with zipfile.ZipFile(out) as archive:
                content = archive.read(LABEL_FILE)
        there = json.loads(content)
        same = isinstance(there, dict) and all(there.get(name) == value for name, value in made.items())
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError):
        same = False
    if not same:
        raise UserError(f"{out} exists already and is not what this command makes; remove it or choose another --out")
    return True


class Parts:
    """The parts of one set in the making. Make it by `open_parts`, which holds the lock."""

    def __init__(self, folder: Path, num_images: int) -> None:
        self.folder = folder
        self.num_images = num_images

    def __len__(self) -> int:
        return -(-self.num_images // PART_IMAGES)

    def images(self, number: int) -> range:
        """Indices of the images of a part."""
        return range(number * PART_IMAGES, min((number + 1) * PART_IMAGES, self.num_images))

    def path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.zip"

    def write(self, number: int, members: Iterable[tuple[str, bytes]], record: Mapping[str, Any]) -> None:
        """Write a part, from any process; `members` may be a generator that fills `record` as it goes."""
        with atomic_path(self.path(number)) as temporary, zipfile.ZipFile(temporary, "w") as archive:
            for name, content in members:
                _store(archive, name, content)
            _store(archive, _RECORD, json.dumps(record, allow_nan=False).encode())

    def record(self, number: int) -> dict[str, Any] | None:
        """What was noted with a finished part; None where it is not there, or damaged."""
        try:
            with zipfile.ZipFile(self.path(number)) as archive:
                return json.loads(archive.read(_RECORD))
        except (OSError, ValueError, KeyError, zipfile.BadZipFile, zlib.error):
            return None

    def members(self) -> Iterator[tuple[str, bytes]]:
        """All members of all parts, in order. Only when all parts are there."""
        for number in range(len(self)):
            with zipfile.ZipFile(self.path(number)) as archive:
                for name in archive.namelist():
                    if name != _RECORD:
                        yield name, archive.read(name)

    def finish(self, out: Path | str, document: Mapping[str, Any]) -> None:
        """Join all parts and dataset.json into `out`, then remove them. Raises UserError where writing fails."""
        out = Path(out)
        content = json.dumps(document, allow_nan=False).encode()
        if out.suffix:
            with atomic_path(out) as temporary, zipfile.ZipFile(temporary, "w") as archive:
                for name, member in self.members():
                    _store(archive, name, member)
                _store(archive, LABEL_FILE, content)
        else:
            self._finish_folder(out, content)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _finish_folder(self, out: Path, content: bytes) -> None:
        joined = self.folder / "joined"  # in the same file system, so that the rename is one step
        shutil.rmtree(joined, ignore_errors=True)
        try:
            for name, member in self.members():
                path = joined / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(member)
            joined.mkdir(exist_ok=True)
            (joined / LABEL_FILE).write_bytes(content)
            os.sync()
            joined.rename(out)
        except OSError as error:
            raise UserError(
                f"cannot write {out}: {error.strerror or error}; check its permissions and the free disk space"
            ) from None

    def discard(self) -> None:
        """Remove all parts: their images cannot become a set."""
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def open_parts(out: Path | str, settings: Mapping[str, Any], num_images: int) -> Iterator[Parts]:
    """The parts of the set `out`, alone; those of an earlier call with the same settings are kept, others removed.

    Args:
        out: the set.
        settings: JSON-like; all that decides the content.
        num_images: of the set.

    Raises:
        UserError: the folder cannot be written, or another process is making the same set.
    """
    out = Path(out)
    folder = out.absolute().parent / f".{out.name}.parts"
    make_folder(folder)
    with alone(folder / ".lock", f"another process is making {out}; wait for it, or choose another --out"):
        before = folder / "settings.json"
        wanted = json.loads(json.dumps(settings))
        if not before.exists() or _read_or_none(before) != wanted:
            for old in (*folder.glob("*.zip"), before):
                old.unlink(missing_ok=True)
            write_json(before, wanted)
        for leftover in folder.glob(".*.tmp"):  # of a killed writer
            leftover.unlink(missing_ok=True)
        yield Parts(folder, num_images)


def _read_or_none(path: Path) -> Any:
    try:
        return read_json(path)
    except UserError:
        return None


def _store(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    info = zipfile.ZipInfo(name, _DATE)
    info.create_system = 3  # Unix on every system: equal bytes
    info.external_attr = 0o644 << 16
    archive.writestr(info, content)
