"""Published reference statistics: mean and covariance of real images' features, for FID and FD-DINOv2.

`.pkl` holds a dict {num_images, fid: {mu [2048], sigma [2048, 2048]}, fd_dinov2: {mu [1024], sigma}} of float64 arrays and is as
dangerous as any pickle, so the restricted reader reads it; `.npz` holds mu and sigma for FID.
"""

import math
import re
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autoguidance.errors import UserError
from autoguidance.interop.edm2.archives import read_directory
from autoguidance.interop.edm2.machine import RefusedError, shown
from autoguidance.interop.edm2.records import Array, naming, read_records

_METRICS = {"fid": "inception", "fd_dinov2": "dinov2"}
_MAX_FEATURES = 8192
_MAX_GROWTH = 64 << 20  # bytes that a member may have more than the file
# Read by this pattern and not by numpy, whose reader evaluates the header as a Python literal.
_HEADER = re.compile(
    rb"\{'descr': '<f8', 'fortran_order': (True|False), 'shape': \((\d{1,9}, ?|\d{1,9}, ?\d{1,9},?)\),? ?\} *\n"
)


@dataclass(frozen=True, kw_only=True, eq=False)
class PublishedReference:
    """Statistics of one feature network.

    Attributes:
        features: "inception" or "dinov2".
        mean: [d] float64.
        covariance: [d, d] float64.
        num_images: images they were computed from; 0: not recorded.
    """

    features: str
    mean: np.ndarray
    covariance: np.ndarray
    num_images: int


def read_reference(path: Path | str) -> tuple[PublishedReference, ...]:
    """Reference statistics from a published `.pkl` or `.npz`, one per feature network.

    Raises: UserError in one line where the file is not that, is damaged, or holds anything not known.
    """
    path = Path(path)
    with naming(path):
        if path.suffix == ".npz":
            return (_read_npz(path),)
        top = read_records(path)
        if not isinstance(top, dict):
            raise RefusedError("it holds no dictionary of statistics")
        count = _scalar(top.get("num_images", 0))
        found = [
            _checked(metric, top[metric].get("mu"), top[metric].get("sigma"), count)
            for metric in _METRICS
            if isinstance(top.get(metric), dict)
        ]
        if not found:
            raise RefusedError(f"it holds no statistics under {' or '.join(_METRICS)}")
        return tuple(found)


def _scalar(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**48:
        raise RefusedError("its number of images is not a whole number")
    return value


def _checked(metric: str, mean: Any, covariance: Any, num_images: int) -> PublishedReference:
    arrays = [part.value if isinstance(part, Array) else part for part in (mean, covariance)]
    if not all(isinstance(part, np.ndarray) and part.dtype == np.float64 for part in arrays):
        raise RefusedError(f"mu and sigma of {metric} are not arrays of float64")
    mu, sigma = arrays
    assert mu is not None
    assert sigma is not None
    if mu.ndim != 1 or not 0 < mu.size <= _MAX_FEATURES or sigma.shape != (mu.size, mu.size):
        raise RefusedError(f"mu and sigma of {metric} do not fit each other ({list(mu.shape)} and {list(sigma.shape)})")
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise RefusedError(f"mu or sigma of {metric} holds values that are not finite")
    return PublishedReference(
        features=_METRICS[metric],
        mean=mu,
        covariance=sigma,
        num_images=num_images,
    )


def _read_npz(path: Path) -> PublishedReference:
    if path.is_dir() or not path.exists():
        raise UserError(f"{path} {'is a folder' if path.is_dir() else 'does not exist'}; name a file")
    try:
        with path.open("rb") as file:
            infos = {info.filename: info for info in read_directory(file)}
            if not {"mu.npy", "sigma.npy"} <= infos.keys():
                raise RefusedError("it holds no mu and sigma")
            size = path.stat().st_size
            with zipfile.ZipFile(file) as archive:
                mean, covariance = (_read_array(archive, infos[name], size) for name in ("mu.npy", "sigma.npy"))
    except (zipfile.BadZipFile, zlib.error, ValueError, OSError, EOFError, RuntimeError) as error:
        if isinstance(error, RefusedError):
            raise
        raise RefusedError(f"it is not a readable .npz file of plain arrays ({shown(error)})") from None
    return _checked("fid", mean, covariance, 0)


def _read_array(archive: zipfile.ZipFile, info: zipfile.ZipInfo, file_size: int) -> np.ndarray:
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or info.flag_bits & 1:
        raise RefusedError(f"its member {shown(info.filename)} is encrypted or compressed in an unusual way")
    if info.file_size > file_size + _MAX_GROWTH:
        raise RefusedError(f"its member {shown(info.filename)} claims to unpack to {info.file_size} bytes")
    with archive.open(info) as member:
        magic = member.read(10)
        length = int.from_bytes(magic[8:10], "little")
        header = _HEADER.fullmatch(member.read(length)) if magic[:8] == b"\x93NUMPY\x01\x00" else None
        if header is None:
            raise RefusedError(f"its member {shown(info.filename)} is not a plain array of float64")
        shape = tuple(int(part) for part in header[2].split(b",") if part.strip())
        count = math.prod(shape)
        data = member.read(count * 8) if 0 < count <= _MAX_FEATURES**2 else b""
        if len(data) != count * 8 or member.read(1):
            raise RefusedError(f"its member {shown(info.filename)} does not hold the numbers that it declares")
    return np.frombuffer(data, dtype="<f8").reshape(shape, order="F" if header[1] == b"True" else "C")
