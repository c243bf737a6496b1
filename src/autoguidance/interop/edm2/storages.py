"""Tensor storages inside a pickle, read as data.

torch writes each storage of a pickled tensor as the bytes of an archive of its own (`torch.save` of the storage), to be
given to `torch.storage._load_from_bytes`, which unpickles them without any restriction. Here the archive is parsed.
Two forms are known:

    legacy   five pickles (magic number, version, platform, the storage's id, list of keys), then the number of
             elements as int64, then the elements
    zip      members data.pkl (the storage's id) and data/KEY (the elements), stored without compression

An id is ('storage', torch.HalfStorage, key, location, number of elements[, None]).
"""

import io
import zipfile
from dataclasses import dataclass
from typing import IO, Any, cast

import torch
from torch import Tensor

from autoguidance.interop.edm2.archives import read_directory
from autoguidance.interop.edm2.machine import Global, PickleMachine, RefusedError, shown

_MAGIC = 0x1950A86A20F9469CFC6C
_VERSION = 1001
_MAX_OPCODES = 200  # of one pickle in an archive; torch writes about sixty
_DTYPES = {
    "HalfStorage": torch.float16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_GLOBALS = {("torch", name): Global(name) for name in _DTYPES}


@dataclass(frozen=True, eq=False)
class Storage:
    """Elements that tensors are views of.

    Attributes:
        dtype: of the elements.
        numel: how many.
        data: their bytes, a slice of the file.
    """

    dtype: torch.dtype
    numel: int
    data: memoryview

    def tensor(self) -> Tensor:
        """All elements in a row, sharing the file's bytes."""
        return torch.frombuffer(self.data, dtype=self.dtype, count=self.numel)


def _storage_id(value: Any) -> tuple[torch.dtype, str, int]:
    if not isinstance(value, tuple) or len(value) not in (5, 6) or value[0] != "storage":
        raise RefusedError("a tensor's storage is described in a way that published files do not use")
    kind, key, location, numel = value[1:5]
    if not isinstance(kind, Global) or kind.name not in _DTYPES or (len(value) == 6 and value[5] is not None):
        raise RefusedError("a tensor's storage is of a kind that published files do not use")
    if not isinstance(key, str) or not isinstance(location, str) or type(numel) is not int or numel < 0:
        raise RefusedError("a tensor's storage is described in a way that published files do not use")
    return _DTYPES[kind.name], key, numel


def _checked(dtype: torch.dtype, numel: int, data: memoryview) -> Storage:
    if numel * dtype.itemsize != len(data):
        raise RefusedError(f"a storage declares {numel} elements of {dtype.itemsize} bytes but holds {len(data)} bytes")
    return Storage(dtype, numel, data)


def read_storage(archive: Any) -> Storage:
    """The storage in an archive.

    Args:
        archive: bytes or a slice of the file.

    Raises: RefusedError where it is not exactly one storage in one of the two forms.
    """
    if not isinstance(archive, (bytes, memoryview)):
        raise RefusedError("a tensor's storage is not given as bytes")
    data = memoryview(archive)
    return _read_zip(data) if data[:4] == b"PK\x03\x04" else _read_legacy(data)


def _read_legacy(data: memoryview) -> Storage:
    machine = PickleMachine(data, _GLOBALS, persistent=_storage_id, max_opcodes=_MAX_OPCODES)
    if machine.load() != _MAGIC or machine.load(machine.position) != _VERSION:
        raise RefusedError("a tensor's storage is not an archive of torch")
    platform = machine.load(machine.position)
    if not isinstance(platform, dict) or platform.get("little_endian") is not True:
        raise RefusedError("a tensor's storage was not written on a little-endian machine")
    described = machine.load(machine.position)
    if not isinstance(described, tuple) or len(described) != 3:
        raise RefusedError("a tensor's archive holds something other than one storage")
    dtype, key, numel = described
    if machine.load(machine.position) != [key]:
        raise RefusedError("a tensor's archive holds more or less than one storage")
    rest = data[machine.position :]
    if len(rest) < 8 or int.from_bytes(rest[:8], "little", signed=True) != numel:
        raise RefusedError("a storage's number of elements is not the one declared")
    return _checked(dtype, numel, rest[8:])


def _read_zip(data: memoryview) -> Storage:
    members = _members(data)
    roots = {name.split("/")[0] for name in members}
    if len(roots) != 1:
        raise RefusedError("a tensor's zip archive has members outside one folder")
    root = roots.pop()
    if f"{root}/data.pkl" not in members:
        raise RefusedError("a tensor's zip archive has no data.pkl")
    if members.get(f"{root}/byteorder", memoryview(b"little")) != b"little":
        raise RefusedError("a tensor's storage was not written on a little-endian machine")
    pickle_data = members[f"{root}/data.pkl"]
    machine = PickleMachine(pickle_data, _GLOBALS, persistent=_storage_id, max_opcodes=_MAX_OPCODES)
    described = machine.load()
    if machine.position != len(pickle_data):
        raise RefusedError("a tensor's zip archive has bytes after the end of data.pkl")
    if not isinstance(described, tuple) or len(described) != 3:
        raise RefusedError("a tensor's archive holds something other than one storage")
    dtype, key, numel = described
    stored = [name for name in members if name.startswith(f"{root}/data/")]
    if stored != [f"{root}/data/{key}"]:
        raise RefusedError("a tensor's archive holds more or less than one storage")
    return _checked(dtype, numel, members[stored[0]])


def _members(data: memoryview) -> dict[str, memoryview]:
    """Members of an archive as slices. Only the directory is parsed by `zipfile`; nothing is unpacked."""
    infos = read_directory(cast(IO[bytes], _View(data)))
    if len(infos) > 32:
        raise RefusedError("a tensor's zip archive has more members than torch writes")
    members: dict[str, memoryview] = {}
    for info in infos:
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise RefusedError(f"a tensor's zip archive has a compressed or encrypted member ({shown(info.filename)})")
        if info.filename.startswith("/") or ".." in info.filename.split("/") or info.filename in members:
            raise RefusedError(f"a tensor's zip archive has a member with the name {shown(info.filename)}")
        header = data[info.header_offset : info.header_offset + 30]
        if len(header) < 30 or header[:4] != b"PK\x03\x04":
            raise RefusedError("a tensor's zip archive lies about where its members are")
        start = (
            info.header_offset + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        )
        if info.file_size != info.compress_size or start + info.file_size > len(data):
            raise RefusedError(f"a tensor's zip archive lies about the size of {shown(info.filename)}")
        members[info.filename] = data[start : start + info.file_size]
    return members


class _View(io.RawIOBase):
    """A slice of the file as a file object, without copying it."""

    def __init__(self, data: memoryview) -> None:
        self._data, self._position = data, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        base = (0, self._position, len(self._data))[whence]
        if base + offset < 0:
            raise OSError("seek before the start")
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, size: int = -1) -> bytes:
        end = len(self._data) if size is None or size < 0 else self._position + size
        piece = bytes(self._data[self._position : end])
        self._position += len(piece)
        return piece
