"""Mean and covariance of a feature set too large to hold: streamed, pooled exactly, and stored with where they came
from.

Notation: features f_1 .. f_n in R^d; mean mu = sum f_i / n; scatter M = sum (f_i - mu)(f_i - mu)^T; covariance S = M
/ (n - 1). Two disjoint sets pool exactly, with delta = mu_b - mu_a:

    n = n_a + n_b,   mu = mu_a + delta n_b / n,   M = M_a + M_b + delta delta^T n_a n_b / n

Rows are pooled in blocks of `BLOCK`, whatever the sizes in which they come: one large product M = F^T F per block
runs at the speed of the machine, and the result is bitwise the same for any batch size on one kind of device. Each
block is centred on its own mean first, so a large common offset costs no digits; the textbook sum f f^T - n mu mu^T
loses all of them once |mu|^2 / S reaches 10^16.

Features that lie on a CUDA device stay there, with block and scatter in float64: a GPU that is made for float64 takes
milliseconds for a product that takes a CPU seconds.

Reference: Chan, Golub and LeVeque 1979, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances",
STAN-CS-79-773.
"""

import hashlib
import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from autoguidance.errors import NotFiniteError, UserError
from autoguidance.storage import atomic_path

FORMAT_VERSION = 1
BLOCK = 4096
"""Rows that `Accumulator` pools at a time: enough for a product at full speed, 64 MiB at d = 2048."""
_MEMBERS = {"mean.npy", "covariance.npy", "num.npy", "record.npy"}

DAMAGED_ARCHIVE = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
    RuntimeError,
    MemoryError,  # an array that claims to be huge
)
"""What numpy, zipfile and zlib raise on a damaged .npz file."""


@dataclass(frozen=True, eq=False)
class Statistics:
    """Mean and covariance of a set of features, in float64.

    Attributes:
        mean: [d].
        covariance: [d, d], symmetric, normalized by n - 1.
        num: n, the number of features (images) behind them, at least 2; 0 where somebody else's file does not say.
        record: their origin, JSON-like: `features`, `features_sha256`, `source`, `source_sha256`; {} if unknown.

    Raises:
        UserError: shapes that do not fit, too few features, or NaN or infinity.
    """

    mean: Float64[np.ndarray, "d"]
    covariance: Float64[np.ndarray, "d d"]
    num: int
    record: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        mean = np.asarray(self.mean, dtype=np.float64)
        covariance = np.asarray(self.covariance, dtype=np.float64)
        if mean.ndim != 1 or not mean.size or covariance.shape != (mean.size, mean.size):
            raise UserError(f"mean {mean.shape} and covariance {covariance.shape} do not fit; give [d] and [d, d]")
        if self.num and self.num < 2:
            raise UserError(f"statistics of {self.num} images have no covariance; give at least 2 images")
        if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
            raise UserError("mean or covariance holds NaN or infinity; compute the statistics again from the images")
        if not np.allclose(covariance, covariance.T, rtol=1e-6, atol=1e-9 * np.abs(covariance).max()):
            raise UserError("the covariance is not symmetric; compute the statistics again from the images")
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "covariance", covariance)
        object.__setattr__(self, "num", int(self.num))

    @property
    def num_features(self) -> int:
        return self.mean.size

    @property
    def sha256(self) -> str:
        """Identifies the numbers, where the images behind them are not known."""
        return hashlib.sha256(self.mean.tobytes() + np.ascontiguousarray(self.covariance).tobytes()).hexdigest()

    @classmethod
    def from_features(
        cls, features: Float[np.ndarray, "n d"] | Float[Tensor, "n d"], record: Mapping[str, Any] | None = None
    ) -> "Statistics":
        """Statistics of a feature set that fits into memory. Raises UserError as `Accumulator.update` does."""
        accumulator = Accumulator()
        accumulator.update(features)
        return accumulator.statistics(record)

    def arrays(self) -> dict[str, np.ndarray]:
        """What a file of it holds: mean, covariance, num, and the record as JSON text."""
        record = json.dumps({"format_version": FORMAT_VERSION, **self.record}, allow_nan=False)
        return {
            "mean": self.mean,
            "covariance": self.covariance,
            "num": np.array(self.num, dtype=np.int64),
            "record": np.array(record),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "Statistics":
        """Back from `arrays`. Raises ValueError (or what numpy raises) where something is missing or wrong."""
        mean, covariance = arrays["mean"], arrays["covariance"]
        num, record = int(arrays["num"]), json.loads(str(arrays["record"]))
        if not isinstance(record, dict) or mean.dtype != np.float64 or covariance.dtype != np.float64:
            raise ValueError("unexpected content")
        version = record.pop("format_version", None)
        if version != FORMAT_VERSION:
            raise ValueError(f"format version {version}, not {FORMAT_VERSION}")
        return cls(mean, covariance, num, record)

    def save(self, path: Path | str, features: Float[np.ndarray, "n d"] | None = None) -> None:
        """Write `path` (.npz) atomically, with the features themselves where given; UserError where that fails."""
        kept = {} if features is None else {"features": np.asarray(features, dtype=np.float32)}
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **self.arrays(), **kept)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: Path | str) -> "Statistics":
        """Read what `save` wrote; no code in the file is run.

        Raises:
            UserError: the file is missing, damaged, of a newer format, or no statistics file.
        """
        return read_statistics_file(path)[0]


def read_statistics_file(
    path: Path | str, *, with_features: bool = False
) -> tuple[Statistics, Float[np.ndarray, "n d"] | None]:
    """Statistics and, where asked for and stored, the float32 features behind them; no code in the file is run.

    Raises:
        UserError: the file is missing, damaged, of a newer format, or no statistics file.
    """
    path = Path(path)
    if path.is_file() and not is_statistics_file(path):
        raise UserError(f"{path} is not a whole statistics file; make one with `autoguidance stats`")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            statistics = Statistics.from_arrays(arrays)
            features = arrays["features"] if with_features and "features" in arrays else None
        if features is not None and (
            features.dtype != np.float32 or features.ndim != 2 or features.shape[1] != statistics.num_features
        ):
            raise ValueError(f"features are {features.dtype} {list(features.shape)}")
        return statistics, features
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; make it with `autoguidance stats`") from None
    except DAMAGED_ARCHIVE as error:
        raise UserError(
            f"{path} cannot be read as statistics ({error}); make it again with `autoguidance stats`"
        ) from None


def is_statistics_file(path: Path | str) -> bool:
    """Whether a file is a statistics file, judged by the names in the archive (an array file of images has others)."""
    try:
        with zipfile.ZipFile(path) as archive:
            return set(archive.namelist()) >= _MEMBERS
    except (OSError, zipfile.BadZipFile):
        return False


Array = Any
"""float64 numbers: a Tensor on a CUDA device, numpy's array on the CPU. Where nothing else is said, both spell it alike.

Not torch on the CPU: numpy sees that F^T F is symmetric and takes half the time of a general product; and torch shares
out the small work of each batch to threads, which on a busy machine wait for each other longer than they compute.
"""


def _in_place(features: Float[np.ndarray, "n d"] | Float[Tensor, "n d"]) -> Array:
    """Features where the work on them is done: on their CUDA device, else on the CPU (other devices lack float64)."""
    tensor = torch.as_tensor(features).detach()
    tensor = tensor if tensor.is_cuda else tensor.cpu()
    tensor = tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.double()
    return tensor if tensor.is_cuda else tensor.numpy()


def _numpy(value: Array) -> np.ndarray:
    return value.cpu().numpy() if isinstance(value, Tensor) else value


def _empty_block(rows: Array) -> Array:
    """Room for `BLOCK` rows where `rows` are."""
    shape = (BLOCK, rows.shape[1])
    if isinstance(rows, Tensor):
        return torch.empty(shape, dtype=torch.float64, device=rows.device)
    return np.empty(shape)


def _copied_to(block: Array, value: Array) -> Array:
    """A copy of `value` where `block` is."""
    if isinstance(block, Tensor):
        return torch.as_tensor(value).to(block.device, copy=True)
    return _numpy(value).copy()


class Accumulator:
    """Running mean and scatter of features that arrive in batches of any size.

    Holds d^2 numbers and up to `BLOCK` rows, never all features: on the CUDA device of the first features, or on the
    CPU. One that travels to another process arrives on the CPU.

    Args:
        what: what the features are of, for error messages.
    """

    def __init__(self, what: str = "the features") -> None:
        self.what = what
        self._num_pooled = 0
        self._mean: Array | None = None
        self._scatter: Array | None = None
        self._block: Array | None = None  # [BLOCK, d], of which the first `_num_waiting` rows count
        self._num_waiting = 0

    def __getstate__(self) -> dict[str, Any]:
        return {name: _numpy(value) for name, value in vars(self).items()}

    @property
    def num(self) -> int:
        """Features seen."""
        return self._num_pooled + self._num_waiting

    # Networks run in inference mode, and a tensor made there can be written to there only: so it is on throughout.
    @torch.inference_mode()
    def update(self, features: Float[np.ndarray, "n d"] | Float[Tensor, "n d"]) -> None:
        """Add features, one row per image; none at all is fine.

        Raises:
            UserError: not [n, d] with the d of earlier batches, or NaN or infinity among them.
        """
        batch = _in_place(features)
        if batch.ndim != 2 or (self._block is not None and batch.shape[1] != self._block.shape[1]):
            expected = "[n, d]" if self._block is None else f"[n, {self._block.shape[1]}]"
            raise UserError(f"{self.what} have the shape {list(batch.shape)}; expected {expected}")
        if not len(batch):
            return
        is_tensor = isinstance(batch, Tensor)
        finite = torch.isfinite(batch).all(dim=1) if is_tensor else np.isfinite(batch).all(axis=1)
        if not finite.all():
            bad = np.flatnonzero(~_numpy(finite))
            raise NotFiniteError(
                f"{self.what}: NaN or infinity for {len(bad)} of {len(batch)} images, "
                f"first for image {self.num + int(bad[0])}; check these images and the feature network"
            )
        if self._block is None:
            self._block = _empty_block(batch)
        block: Array = self._block
        if is_tensor != isinstance(block, Tensor):
            batch = _copied_to(block, batch)
        taken = 0
        while taken < len(batch):
            part = batch[taken : taken + BLOCK - self._num_waiting]
            block[self._num_waiting : self._num_waiting + len(part)] = part
            self._num_waiting += len(part)
            taken += len(part)
            if self._num_waiting == BLOCK:
                self._pool(*self._waiting())
                self._num_waiting = 0

    def _waiting(self) -> tuple[int, Array, Array]:
        """Count, mean and scatter of the rows that are not pooled yet."""
        assert self._block is not None
        rows = self._block[: self._num_waiting]
        mean = rows.mean(axis=0)
        centred = rows - mean
        scatter = centred.T @ centred
        if isinstance(scatter, Tensor):  # the general product, which need not be symmetric to the last bit
            scatter = (scatter + scatter.T) / 2
        return len(rows), mean, scatter

    @torch.inference_mode()
    def merge(self, other: "Accumulator") -> None:
        """Add everything that another accumulator (another process) has seen. Raises UserError where d differs."""
        if other._block is None:
            return
        if self._block is not None and other._block.shape[1] != self._block.shape[1]:
            raise UserError(
                f"{other.what} have {other._block.shape[1]} dimensions, {self.what} {self._block.shape[1]}; "
                "use one network"
            )
        if self._block is None:
            self._block = _empty_block(other._block)
        if self._num_waiting:
            self._pool(*self._waiting())
            self._num_waiting = 0
        seen = [] if other._mean is None else [(other._num_pooled, other._mean, other._scatter)]
        seen += [other._waiting()] if other._num_waiting else []
        for num, mean, scatter in seen:
            self._pool(num, _copied_to(self._block, mean), _copied_to(self._block, scatter))

    def _pool(self, num: int, mean: Array, scatter: Array) -> None:
        """Pool a set into this one; takes `scatter` over."""
        if self._mean is None or self._scatter is None:
            self._num_pooled, self._mean, self._scatter = num, mean, scatter
            return
        total = self._num_pooled + num
        delta = mean - self._mean
        self._mean = self._mean + delta * (num / total)
        scatter += delta[:, None] * delta * (self._num_pooled * num / total)
        self._scatter += scatter
        self._num_pooled = total

    @torch.inference_mode()
    def statistics(self, record: Mapping[str, Any] | None = None) -> Statistics:
        """The statistics of everything seen. Raises UserError for fewer than two images."""
        if self._block is None or self.num < 2:
            raise UserError(f"{self.what}: {self.num} images have no covariance; give at least 2")
        whole = Accumulator(self.what)
        whole.merge(self)  # what waits here goes on waiting: asking in between must not move the blocks
        assert whole._mean is not None
        assert whole._scatter is not None
        covariance = whole._scatter / (whole.num - 1)
        return Statistics(_numpy(whole._mean), _numpy(covariance), whole.num, dict(record or {}))


def pool_statistics(a: Statistics, b: Statistics) -> Statistics:
    """Statistics of two disjoint sets together. Raises UserError where the dimensions differ or a count is not known."""
    if a.num_features != b.num_features or not a.num or not b.num:
        raise UserError(
            f"statistics of {a.num_features} and {b.num_features} features, {a.num} and {b.num} images do not pool"
        )
    total, delta = a.num + b.num, b.mean - a.mean
    scatter = a.covariance * (a.num - 1) + b.covariance * (b.num - 1) + np.outer(delta, delta) * (a.num * b.num / total)
    return Statistics(a.mean + delta * (b.num / total), scatter / (total - 1), total, a.record)
