"""Zip archives from elsewhere: only the directory is parsed, and only where it is short.

`zipfile` makes an object for every entry before anything can be checked, so the directory's size is taken from the end
record first.
"""

import encodings.cp437  # noqa: F401  (what zipfile would import while a file is read)
import zipfile
from typing import IO

from autoguidance.interop.edm2.machine import RefusedError, shown

_MAX_DIRECTORY = 1 << 16  # bytes
_MAX_TAIL = 22 + (1 << 16)  # the end record and its comment
_END = b"PK\x05\x06"


def read_directory(file: IO[bytes]) -> list[zipfile.ZipInfo]:
    """The entries of an archive.

    Raises: RefusedError where it is damaged, or its directory is larger than that of any file we know.
    """
    size = file.seek(0, 2)
    start = max(0, size - _MAX_TAIL)
    file.seek(start)
    tail = file.read(size - start)
    place = tail.rfind(_END)
    if place < 0 or len(tail) < place + 22:
        raise RefusedError("a zip archive has no end; it is cut off or damaged")
    directory = int.from_bytes(tail[place + 12 : place + 16], "little")
    if place >= 20 and tail[place - 20 : place - 16] == b"PK\x06\x07":  # the 64-bit form, which torch writes
        file.seek(min(int.from_bytes(tail[place - 12 : place - 4], "little"), size))
        record = file.read(56)
        if record[:4] != b"PK\x06\x06" or len(record) < 56:
            raise RefusedError("a zip archive lies about where its end is")
        directory = max(int.from_bytes(record[40:48], "little"), 0 if directory == 2**32 - 1 else directory)
    if directory > _MAX_DIRECTORY:
        raise RefusedError("a zip archive has a larger directory than published files")
    file.seek(0)
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError, EOFError) as error:
        raise RefusedError(f"a zip archive is damaged ({shown(error)})") from None
