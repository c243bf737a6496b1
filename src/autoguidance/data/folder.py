"""A folder of images, at any depth, with or without dataset.json (the rules are those of listing.py).

Symbolic links are followed, because sets are often put together from links; one that leads back into its own parents
would never end and is a problem. Whatever cannot be listed is a problem too, so that no image is left out unseen.
"""

import os
import stat
from collections import Counter
from pathlib import Path

from autoguidance.data.decode import MAX_FILE_BYTES, BadImageError
from autoguidance.data.listing import LABEL_FILE, Listing, labels_from_folders, labels_from_json, list_files, sort_out
from autoguidance.data.source import Problem
from autoguidance.errors import UserError


def list_folder(path: Path, name: str) -> Listing:
    """List the images below `path`. Raises UserError where dataset.json as a whole is unusable."""
    names, problems, ignored = _walk(path)
    images, foreign, others = sort_out(names)
    content = _label_file(path / LABEL_FILE)
    labels = (
        labels_from_folders(images) if content is None else labels_from_json(content, images, f"{name}/{LABEL_FILE}")
    )

    return list_files(
        name=name,
        kind="folder",
        files=images,
        read=lambda index: read_file(path / images[index]),
        labels=labels,
        problems=[*problems, *foreign],
        ignored=ignored + others,
    )


def read_file(path: Path) -> bytes:
    """A whole image file. Raises BadImageError where it cannot be read, is too large, or is a pipe or device."""
    try:
        with open(path, "rb", opener=_open_without_waiting) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise BadImageError("not an ordinary file")
            if status.st_size > MAX_FILE_BYTES:
                raise BadImageError(f"{status.st_size:,} bytes, the limit is {MAX_FILE_BYTES:,}")
            return file.read(MAX_FILE_BYTES)
    except OSError as error:
        raise BadImageError(f"cannot be read: {error.strerror or error}") from None


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # opening a pipe would wait for a writer


def _label_file(path: Path) -> bytes | None:
    if not path.is_file():
        return None
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}; check its permissions") from None


def _walk(root: Path) -> tuple[list[str], list[Problem], Counter[str]]:
    names: list[str] = []
    problems: list[Problem] = []
    ignored: Counter[str] = Counter()
    # Each folder carries the identities of its parents: a link to one of them is a loop, a link to a sibling is not.
    pending: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
    while pending:
        prefix, parents = pending.pop()
        folder = root / prefix
        try:
            status = folder.stat()
            identity = (status.st_dev, status.st_ino)
            if identity in parents:
                problems.append(Problem(where=prefix, what="a symbolic link that leads back to a folder above it"))
                continue
            with os.scandir(folder) as entries:
                found = list(entries)
        except OSError as error:
            problems.append(Problem(where=prefix or ".", what=f"cannot be listed: {error.strerror or error}"))
            continue
        for entry in found:
            name = f"{prefix}/{entry.name}" if prefix else entry.name
            if not _is_folder(entry):
                names.append(name)
            elif entry.name.startswith(".") or entry.name == "__MACOSX":
                ignored["hidden"] += 1
            else:
                pending.append((name, parents | {identity}))
    return names, problems, ignored


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself; reading it as a file then names it
        return False
