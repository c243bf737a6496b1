"""Files that are either whole or absent: atomic writes, hashes, journals, the run folder's manifest.

Problem: a process may be killed, or the disk may fill, at any instruction; and a reader may look at any time. So a
file is written under a temporary name in the same folder, flushed to the disk, and renamed; a rename is atomic within
a file system. A journal (`*.jsonl`) grows by whole lines; a torn last line, which a killed writer leaves, is dropped
on reading and on the next append. A folder's `manifest.json` lists what was committed, with SHA-256: a file that is
not in it does not exist.
"""

import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from autoguidance.errors import UserError


def _explain(action: str, path: Path, error: OSError) -> UserError:
    reason = error.strerror or str(error)
    return UserError(f"cannot {action} {path}: {reason}; check the path, its permissions and the free disk space")


def cache_folder() -> Path:
    """Where downloads are kept: $AUTOGUIDANCE_CACHE, else autoguidance/ in $XDG_CACHE_HOME or ~/.cache."""
    chosen = os.environ.get("AUTOGUIDANCE_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "autoguidance"


def make_folder(path: Path | str) -> Path:
    """Create a folder with its parents; an existing one is fine. Raises UserError where that cannot be done."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _explain("create the folder", path, error) from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise UserError(f"cannot write into {path}: permission denied; choose another output folder")
    return path


@contextmanager
def alone(lock: Path, message: str | None) -> Iterator[None]:
    """One process at a time; the system frees the lock when its holder dies.

    Args:
        lock: a file to lock, made where it is not there; it stays.
        message: what to tell a second process; None: it waits.

    On a file system without locks everyone passes: the user has to see to it.

    Raises: UserError with `message`, or where the file cannot be written.
    """
    try:
        handle = lock.open("w")
    except OSError as error:
        raise _explain("write", lock, error) from None
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if message is None else fcntl.LOCK_NB))
        except BlockingIOError:
            raise UserError(message or "locked") from None
        except OSError:
            pass
        yield


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is flushed and renamed to `path`, on failure removed.

    Whoever reads `path` sees the old content or the whole new one. Raises UserError where writing fails (disk full,
    permissions); what was there before is then untouched.
    """
    path = Path(path)
    make_folder(path.parent)
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    except OSError as error:
        raise _explain("write", path, error) from None
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)  # mkstemp makes files private; results are for sharing
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise _explain("write", path, error) from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_bytes(path: Path | str, content: bytes) -> None:
    """Write a whole file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path | str, content: str) -> None:
    """Write a whole UTF-8 text file atomically."""
    write_bytes(path, content.encode())


def write_json(path: Path | str, content: Any) -> None:
    """Write JSON atomically; NaN and infinity are refused, because other readers of JSON cannot take them."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def read_json(path: Path | str) -> Any:
    """Read JSON. Raises UserError where the file is missing or damaged."""
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; check the path") from None
    except OSError as error:
        raise _explain("read", path, error) from None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); restore it or remove it and run again") from None


def read_json_lines(path: Path | str) -> list[Any]:
    """All records of a journal, in order; [] where it does not exist. A torn last line is dropped.

    Raises UserError where a line before the last one is damaged: that is not what a killed writer leaves.
    """
    path = Path(path)
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise _explain("read", path, error) from None
    records = []
    for number, line in enumerate(lines[:-1], 1):  # the last piece is empty, or torn
        try:
            records.append(json.loads(line))
        except ValueError:
            if number == len(lines) - 1:
                break
            raise UserError(f"{path}: line {number} is damaged; remove that line and run again") from None
    return records


def append_json_line(path: Path | str, record: Mapping[str, Any]) -> None:
    """Append one record to a journal and flush it to the disk. One writer at a time.

    A torn last line from an earlier, killed writer is cut off first, so that the new record starts on its own line.
    """
    path = Path(path)
    make_folder(path.parent)
    line = (json.dumps(record, allow_nan=False) + "\n").encode()
    try:
        with path.open("ab+") as file:
            size = file.seek(0, os.SEEK_END)
            if size:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.seek(0)
                    file.truncate(file.read().rfind(b"\n") + 1)
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise _explain("write", path, error) from None


def sha256_file(path: Path | str) -> str:
    """SHA-256 of a file's content, in hexadecimal. Raises UserError where it cannot be read."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _explain("read", path, error) from None


class Manifest:
    """The list of a run folder's committed files with their SHA-256 (`manifest.json`).

    `commit(file)` is called after the file itself was written atomically. `names()` are the files that exist in the
    sense of the run folder; `verify(name)` compares content and hash.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.path = self.folder / "manifest.json"

    def _read(self) -> dict[str, str]:
        if not self.path.exists():
            return {}
        content = read_json(self.path)
        if not isinstance(content, dict) or not isinstance(content.get("files"), dict):
            raise UserError(f"{self.path} is not a manifest; restore it or start in another folder")
        return content["files"]

    def _write(self, files: Mapping[str, str]) -> None:
        write_json(self.path, {"files": dict(sorted(files.items()))})

    def names(self) -> list[str]:
        """Paths of the committed files, relative to the folder, sorted."""
        return sorted(self._read())

    def commit(self, path: Path | str, *, remove: tuple[str, ...] = ()) -> None:
        """Add a written file (or its new content), and in the same write drop the names in `remove`."""
        name = Path(path).relative_to(self.folder).as_posix()
        files = {**self._read(), name: sha256_file(path)}
        for old in remove:
            files.pop(old, None)
        self._write(files)

    def verify(self, name: str) -> Path:
        """The committed file's path. Raises UserError where it is missing, not committed, or its content changed."""
        path = self.folder / name
        expected = self._read().get(name)
        if expected is None:
            raise UserError(f"{path} is not a committed file of the run {self.folder}; train it first")
        if sha256_file(path) != expected:
            raise UserError(f"{path} is damaged: its SHA-256 differs from manifest.json; restore it from a copy")
        return path
