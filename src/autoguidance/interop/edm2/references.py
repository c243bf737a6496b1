"""Published reference statistics: mean and covariance of real images' features, for FID and FD-DINOv2.

`.pkl` holds a dict {num_images, fid: {mu [2048], sigma [2048, 2048]}, fd_dinov2: {mu [1024], sigma}} of float64 arrays and is as
dangerous as any pickle, so the restricted reader reads it; `.npz` holds mu and sigma for FID.
"""

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autoguidance.errors import UserError
from autoguidance.interop.edm2.machine import RefusedError, shown
from autoguidance.interop.edm2.records import Array, naming, read_records

_METRICS = {"fid": "inception", "fd_dinov2": "dinov2"}
_MAX_FEATURES = 8192


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
    if not all(isinstance(part, np.ndarray) and part.dtype.kind == "f" for part in arrays):
        raise RefusedError(f"mu and sigma of {metric} are not arrays of floating-point numbers")
    mu, sigma = arrays
    assert mu is not None
    assert sigma is not None
    if mu.ndim != 1 or not 0 < mu.size <= _MAX_FEATURES or sigma.shape != (mu.size, mu.size):
        raise RefusedError(f"mu and sigma of {metric} do not fit each other ({list(mu.shape)} and {list(sigma.shape)})")
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise RefusedError(f"mu or sigma of {metric} holds values that are not finite")
    return PublishedReference(
        features=_METRICS[metric],
        mean=mu.astype(np.float64),
        covariance=sigma.astype(np.float64),
        num_images=num_images,
    )


def _read_npz(path: Path) -> PublishedReference:
    if path.is_dir() or not path.exists():
        raise UserError(f"{path} {'is a folder' if path.is_dir() else 'does not exist'}; name a file")
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {info.filename: info.file_size for info in archive.infolist()}
        most = 8 * _MAX_FEATURES**2 + 4096
        for name, size in sizes.items():
            # Before anything is unpacked: no more than the largest statistics, and no more than a plain array shrinks.
            if size > min(most, 100 * path.stat().st_size + 4096):
                raise RefusedError(f"its member {shown(name)} claims to unpack to {size} bytes")
        if not {"mu.npy", "sigma.npy"} <= sizes.keys():
            raise RefusedError("it holds no mu and sigma")
        with np.load(path, allow_pickle=False) as content:
            return _checked("fid", content["mu"], content["sigma"], 0)
    except RefusedError:
        raise
    except (zipfile.BadZipFile, ValueError, OSError, EOFError, KeyError, NotImplementedError, MemoryError) as error:
        raise RefusedError(f"it is not a readable .npz file of plain arrays ({shown(error)})") from None
