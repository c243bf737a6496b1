"""A zip of images, with or without dataset.json (the rules are those of listing.py). Nothing is ever unpacked to the
disk.

A zip from elsewhere may be hostile: members may declare a wrong or an enormous size, be links, or have names that lead
out of the folder. A member's declared size is compared with a limit, and where it is large with its compressed size,
before it is opened; no more than that is read, and its checksum must fit. Links, and names with ".." or a leading "/",
are refused although they could do no harm here, because the set would harm whoever unpacks it.
"""

import lzma
import os
import re
import stat
import struct
import threading
import zipfile
import zlib
from collections import Counter
from pathlib import Path

from autoguidance.data.decode import MAX_FILE_BYTES, BadImageError
from autoguidance.data.listing import LABEL_FILE, Listing, labels_from_folders, labels_from_json, list_files, sort_out
from autoguidance.data.source import Problem
from autoguidance.errors import UserError

_ENCRYPTED = 1  # bit of a member's flags
# Deflate reaches 1032 : 1 on zeros; no picture worth having shrinks 200 times, and small ones do no harm.
_MAX_RATIO = 200
_FREE_BYTES = 16 << 20
_READ_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    OSError,
    ValueError,
    NotImplementedError,
)


def list_zip(path: Path, name: str) -> Listing:
    """List the images of a zip. Raises UserError where it is no zip, or dataset.json as a whole is unusable."""
    archive = ZipReader(path, name)
    counts = Counter(info.filename for info in archive.members if not info.is_dir())
    safe = [member for member in counts if not _is_unsafe(member)]
    problems = [
        Problem(where=member, what="a name that leads out of the folder") for member in counts if _is_unsafe(member)
    ]
    links = {info.filename for info in archive.members if _is_link(info)}
    problems += [
        Problem(where=member, what="a symbolic link; store the file itself") for member in safe if member in links
    ]
    images, foreign, ignored = sort_out(member for member in safe if member not in links)
    problems += [
        Problem(where=member, what=f"{counts[member]} members have this name")
        for member in images
        if counts[member] > 1
    ]
    if LABEL_FILE in counts:
        try:
            content = archive.read(LABEL_FILE)
        except BadImageError as error:
            raise UserError(f"{name}: {LABEL_FILE} cannot be read ({error}); mend the zip") from None
        labels = labels_from_json(content, images, f"{name}: {LABEL_FILE}")
    else:
        labels = labels_from_folders(images)

    return list_files(
        name=name,
        kind="zip",
        files=images,
        read=lambda index: archive.read(images[index]),
        labels=labels,
        problems=[*problems, *foreign],
        ignored=ignored,
    )


def _is_link(info: zipfile.ZipInfo) -> bool:
    return stat.S_ISLNK(info.external_attr >> 16)


def _is_unsafe(name: str) -> bool:
    return name.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", name) or bool(re.match(r"[A-Za-z]:", name))


class ZipReader:
    """Reads members from several threads. A forked process opens the file anew: the two would share one file
    position."""

    def __init__(self, path: Path, name: str) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._owner = os.getpid()
        try:
            self._archive = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
            raise UserError(f"{name} is not a zip file, or is truncated ({error}); make or copy it again") from None
        except OSError as error:
            raise UserError(
                f"cannot read {name}: {error.strerror or error}; check the path and its permissions"
            ) from None
        self.members = self._archive.infolist()

    def _open_archive(self) -> zipfile.ZipFile:
        with self._lock:
            if self._owner != os.getpid():
                self._archive = zipfile.ZipFile(self._path)
                self._owner = os.getpid()
            return self._archive

    def read(self, member: str) -> bytes:
        """A member's whole content. Raises BadImageError where it is encrypted, too large, or damaged."""
        archive = self._open_archive()
        info = archive.getinfo(member)
        if info.flag_bits & _ENCRYPTED:
            raise BadImageError("encrypted")
        if info.file_size > MAX_FILE_BYTES:
            raise BadImageError(
                f"decompression bomb or huge file: {info.file_size:,} bytes, the limit is {MAX_FILE_BYTES:,}"
            )
        if info.file_size > max(_FREE_BYTES, _MAX_RATIO * info.compress_size):
            raise BadImageError(
                f"decompression bomb: {info.file_size:,} bytes out of {info.compress_size:,}, more than {_MAX_RATIO} : 1"
            )
        try:
            with archive.open(info) as file:
                content = file.read(info.file_size + 1)
        except _READ_ERRORS as error:
            reason = str(error).splitlines()[0][:80] if str(error) else type(error).__name__
            raise BadImageError(f"damaged in the zip: {reason}") from None
        if len(content) != info.file_size:
            raise BadImageError(f"the zip declares {info.file_size:,} bytes, {len(content):,} are there")
        return content
