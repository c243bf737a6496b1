"""The harmless names of published files, and the inert records that stand for what they would make.

| name in the file | here |
|---|---|
| `collections.OrderedDict`, `dnnlib.util.EasyDict` | a plain dict |
| `torch_utils.persistence._reconstruct_persistent_obj` | `Module`: class name and state; its source text is never read |
| `torch.nn.modules.container.ModuleDict` | `Module` |
| `torch._utils._rebuild_tensor_v2`, `_rebuild_parameter`, `torch.storage._load_from_bytes` | `TensorView` on a `Storage` |
| `numpy.core.multiarray._reconstruct` (or `numpy._core`), `numpy.ndarray`, `numpy.dtype` | `Array` |

The names, and what the files hold, are facts about the published format; see the design's `edm2-formats.md`.
"""

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from autoguidance.errors import UserError
from autoguidance.interop.edm2.machine import Buildable, Global, PickleMachine, RefusedError, shown
from autoguidance.interop.edm2.storages import Storage, read_storage

MAX_STORAGES = 5_000
_MAX_DIMS = 8


class Module(Buildable):
    """An object of the reference program, as data.

    Attributes:
        class_name: its class, without the module.
        state: its attributes.
    """

    def __init__(self, class_name: str, state: dict[Any, Any] | None) -> None:
        self.class_name = class_name
        self.state: dict[Any, Any] = {} if state is None else state
        self._built = state is not None

    def build(self, state: Any) -> None:
        if self._built or not isinstance(state, dict):
            raise RefusedError(f"the state of a {shown(self.class_name)} is set twice or is not a dictionary")
        self.state, self._built = state, True


@dataclass(frozen=True, eq=False)
class TensorView:
    """A strided view of a storage; within its bounds, and without two indices for one element.

    Attributes:
        storage: what it looks at.
        offset, size, stride: in elements.
    """

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Number of elements."""
        count = 1
        for length in self.size:
            count *= length
        return count

    def tensor(self) -> Tensor:
        """As a torch tensor that shares the file's bytes; pages are read when touched."""
        return self.storage.tensor().as_strided(self.size, self.stride, self.offset)


class Array(Buildable):
    """A numpy array of plain numbers. `value` is set by BUILD."""

    def __init__(self) -> None:
        self.value: np.ndarray | None = None

    def build(self, state: Any) -> None:
        if self.value is not None or not isinstance(state, tuple) or len(state) != 5:
            raise RefusedError("a numpy array is described in a way that published files do not use")
        _, shape, dtype, fortran, data = state
        if not isinstance(dtype, Dtype) or not isinstance(data, (bytes, memoryview)) or type(fortran) is not bool:
            raise RefusedError("a numpy array holds something other than plain numbers")
        _check_sizes(shape)
        count = 1
        for length in shape:
            count *= length
        if count * dtype.value.itemsize != len(data):
            raise RefusedError(f"a numpy array declares {count} elements but holds {len(data)} bytes")
        self.value = np.frombuffer(data, dtype=dtype.value).reshape(shape, order="F" if fortran else "C")


class Dtype(Buildable):
    """A numpy dtype: one of the plain number types."""

    _PLAIN = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")

    def __init__(self, text: Any, align: Any = False, copy: Any = False) -> None:
        if not isinstance(text, str) or text not in self._PLAIN or type(align) is not bool or type(copy) is not bool:
            raise RefusedError(f"a numpy array has the type {shown(text)}, not plain numbers")
        self.value = np.dtype(text)

    def build(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 8 or state[1] not in ("<", "|", "="):
            raise RefusedError("a numpy array's type is described in a way that published files do not use")
        if any(part is not None for part in state[2:5]):
            raise RefusedError("a numpy array has fields, not plain numbers")


def _check_sizes(sizes: Any) -> None:
    if not isinstance(sizes, tuple) or len(sizes) > _MAX_DIMS:
        raise RefusedError("a tensor's shape is not a tuple of at most 8 numbers")
    if any(type(length) is not int or not 0 < length < 2**40 for length in sizes):
        raise RefusedError("a tensor's shape holds something other than positive whole numbers")


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> TensorView:
    if not isinstance(storage, Storage) or len(rest) not in (2, 3):
        raise RefusedError("a tensor is described in a way that published files do not use")
    _check_sizes(size)
    whole = isinstance(stride, tuple) and all(type(step) is int and 0 <= step < 2**40 for step in stride)
    if not whole or len(stride) != len(size):
        raise RefusedError("a tensor has strides that are negative or not whole numbers")
    view = TensorView(storage, offset, size, stride)
    last = offset if type(offset) is int else -1
    reach = 1
    for step, length in sorted((step, length) for step, length in zip(stride, size, strict=True) if length > 1):
        if step < reach:
            raise RefusedError("a tensor's strides show one element under several indices (stride 0 or overlapping)")
        last += step * (length - 1)
        reach = step * (length - 1) + reach
    if type(offset) is not int or offset < 0 or last >= storage.numel:
        raise RefusedError("a tensor reaches beyond its storage")
    return view


def _rebuild_parameter(data: Any, requires_grad: Any, hooks: Any) -> TensorView:
    if not isinstance(data, TensorView):
        raise RefusedError("a parameter is not a tensor")
    return data


def _persistent(described: Any) -> Module:
    if not isinstance(described, dict) or described.get("type") != "class" or described.get("version") != 6:
        raise RefusedError("an object is described in a way that published files do not use (version 6 is known)")
    name, state = described.get("class_name"), described.get("state")
    if not isinstance(name, str) or not (state is None or isinstance(state, dict)):
        raise RefusedError("an object is described without class name and state")
    return Module(name, state if state is not None else {})


def _reconstruct_array(kind: Any, shape: Any, code: Any) -> Array:
    if not isinstance(kind, Global) or kind.name != "numpy.ndarray" or shape != (0,):
        raise RefusedError("a numpy array is described in a way that published files do not use")
    return Array()


def _empty_dict() -> dict[Any, Any]:
    return {}


def _globals() -> dict[tuple[str, str], Global]:
    seen: dict[int, Any] = {}  # the archives themselves too, so that no other gets the same id

    def load_from_bytes(archive: Any) -> Storage:
        if id(archive) in seen:
            raise RefusedError("it reads one tensor's archive twice; no published file does")
        seen[id(archive)] = archive
        if len(seen) > MAX_STORAGES:
            raise RefusedError(f"it holds more than {MAX_STORAGES} tensors; no published file has so many")
        return read_storage(archive)

    calls: dict[tuple[str, str], dict[str, Any]] = {
        ("collections", "OrderedDict"): {"call": _empty_dict},
        ("dnnlib.util", "EasyDict"): {"new": _empty_dict},
        ("torch_utils.persistence", "_reconstruct_persistent_obj"): {"call": _persistent},
        ("torch.nn.modules.container", "ModuleDict"): {"new": lambda: Module("ModuleDict", None)},
        ("torch._utils", "_rebuild_tensor_v2"): {"call": _rebuild_tensor},
        ("torch._utils", "_rebuild_parameter"): {"call": _rebuild_parameter},
        ("torch.storage", "_load_from_bytes"): {"call": load_from_bytes},
        ("numpy.core.multiarray", "_reconstruct"): {"call": _reconstruct_array},
        ("numpy._core.multiarray", "_reconstruct"): {"call": _reconstruct_array},
        ("numpy", "ndarray"): {},
        ("numpy", "dtype"): {"call": Dtype},
    }
    return {key: Global(".".join(key), **ways) for key, ways in calls.items()}


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put the file's name before the reason of a refusal."""
    try:
        yield
    except RefusedError as error:
        raise UserError(f"{path} is refused: {error}") from None


def read_records(path: Path) -> Any:
    """The one value in a pickle file, as plain values and records.

    The file is mapped into memory, privately: what is large in the result is a view of it.

    Raises: RefusedError for the content; UserError where the file cannot be read.
    """
    try:
        if path.is_dir() or not path.exists():
            raise UserError(f"{path} {'is a folder' if path.is_dir() else 'does not exist'}; name a file")
        if path.stat().st_size == 0:
            raise UserError(f"{path} is empty; fetch it again")
        with path.open("rb") as file:
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"cannot read {path}: {error}; check the path and its permissions") from None
    if data[:2] == b"PK":
        raise RefusedError("it is a zip archive, not a pickle of a published network or of reference statistics")
    if data[:1] != b"\x80":
        raise RefusedError("it does not begin as a pickle does; is it the right file, and whole?")
    machine = PickleMachine(data, _globals())
    value = machine.load()
    if machine.position != len(data):
        raise RefusedError(
            f"{len(data) - machine.position} bytes follow the end of the pickle; no published file has any"
        )
    return value
