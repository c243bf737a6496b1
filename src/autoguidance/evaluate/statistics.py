"""Mean and covariance of a feature set too large to hold: streamed, pooled exactly, and stored with where they came
from.

Notation: features f_1 .. f_n in R^d; mean mu = sum f_i / n; scatter M = sum (f_i - mu)(f_i - mu)^T; covariance S = M
/ (n - 1). Two disjoint sets pool exactly, with delta = mu_b - mu_a:

    n = n_a + n_b,   mu = mu_a + delta n_b / n,   M = M_a + M_b + delta delta^T n_a n_b / n

Each batch is centred on its own mean first, so a large common offset costs no digits; the textbook sum f f^T - n mu
mu^T loses all of them once |mu|^2 / S reaches 10^16.

Reference: Chan, Golub and LeVeque 1979, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances",
STAN-CS-79-773.
"""

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

from autoguidance.errors import UserError
from autoguidance.storage import atomic_path

FORMAT_VERSION = 1
_MEMBERS = {"mean.npy", "covariance.npy", "num.npy", "record.npy"}


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

    @classmethod
    def from_features(
        cls, features: Float[np.ndarray, "n d"] | Float[Tensor, "n d"], record: Mapping[str, Any] | None = None
    ) -> "Statistics":
        """Statistics of a feature set that fits into memory. Raises UserError as `Accumulator.update` does."""
        accumulator = Accumulator()
        accumulator.update(features)
        return accumulator.statistics(record)

    def save(self, path: Path | str) -> None:
        """Write `path` (.npz: mean, covariance, num, record as JSON text) atomically; UserError where that fails."""
        record = json.dumps({"format_version": FORMAT_VERSION, **self.record}, allow_nan=False)
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez(file, mean=self.mean, covariance=self.covariance, num=np.int64(self.num), record=np.array(record))

    @classmethod
    def load(cls, path: Path | str) -> "Statistics":
        """Read what `save` wrote; no code in the file is run.

        Raises:
            UserError: the file is missing, damaged, of a newer format, or no statistics file.
        """
        path = Path(path)
        if path.is_file() and not is_statistics_file(path):
            raise UserError(f"{path} is not a whole statistics file; make one with `autoguidance stats`")
        try:
            with np.load(path, allow_pickle=False) as arrays:
                mean, covariance = arrays["mean"], arrays["covariance"]
                num, record = int(arrays["num"]), json.loads(str(arrays["record"]))
            if not isinstance(record, dict) or mean.dtype != np.float64 or covariance.dtype != np.float64:
                raise ValueError("unexpected content")
            version = record.pop("format_version", None)
            if version != FORMAT_VERSION:
                raise ValueError(f"format version {version}, not {FORMAT_VERSION}")
            return cls(mean, covariance, num, record)
        except FileNotFoundError:
            raise UserError(f"{path} does not exist; make it with `autoguidance stats`") from None
        # What numpy, zipfile and zlib raise on damaged archives; MemoryError: an array that claims to be huge.
        except (
            OSError,
            ValueError,
            TypeError,
            KeyError,
            EOFError,
            zipfile.BadZipFile,
            zlib.error,
            RuntimeError,
            MemoryError,
        ) as error:
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


class Accumulator:
    """Running mean and scatter of features that arrive in batches of any size; holds d^2 numbers, never the features.

    Args:
        what: what the features are of, for error messages.
    """

    def __init__(self, what: str = "the features") -> None:
        self.what = what
        self.num = 0
        self._mean: np.ndarray | None = None
        self._scatter: np.ndarray | None = None

    def update(self, features: Float[np.ndarray, "n d"] | Float[Tensor, "n d"]) -> None:
        """Add features, one row per image; none at all is fine.

        Raises:
            UserError: not [n, d] with the d of earlier batches, or NaN or infinity among them.
        """
        batch = torch.as_tensor(features).detach().to("cpu", torch.float64).numpy()
        if batch.ndim != 2 or (self._mean is not None and batch.shape[1] != self._mean.size):
            expected = "[n, d]" if self._mean is None else f"[n, {self._mean.size}]"
            raise UserError(f"{self.what} have the shape {list(batch.shape)}; expected {expected}")
        if not len(batch):
            return
        finite = np.isfinite(batch).all(axis=1)
        if not finite.all():
            first = self.num + int(np.argmin(finite))
            raise UserError(
                f"{self.what}: NaN or infinity for {int((~finite).sum())} of {len(batch)} images, "
                f"first for image {first}; check these images and the feature network"
            )
        mean = batch.mean(axis=0)
        centred = batch - mean
        self._pool(len(batch), mean, centred.T @ centred)

    def merge(self, other: "Accumulator") -> None:
        """Add everything that another accumulator (another process) has seen. Raises UserError where d differs."""
        if other._mean is None or other._scatter is None:
            return
        if self._mean is not None and other._mean.size != self._mean.size:
            raise UserError(
                f"{other.what} have {other._mean.size} dimensions, {self.what} {self._mean.size}; use one network"
            )
        self._pool(other.num, other._mean.copy(), other._scatter.copy())

    def _pool(self, num: int, mean: np.ndarray, scatter: np.ndarray) -> None:
        if self._mean is None or self._scatter is None:
            self.num, self._mean, self._scatter = num, mean, scatter
            return
        total = self.num + num
        delta = mean - self._mean
        self._mean = self._mean + delta * (num / total)
        self._scatter += scatter + np.outer(delta, delta) * (self.num * num / total)
        self.num = total

    def statistics(self, record: Mapping[str, Any] | None = None) -> Statistics:
        """The statistics of everything seen. Raises UserError for fewer than two images."""
        if self._mean is None or self._scatter is None or self.num < 2:
            raise UserError(f"{self.what}: {self.num} images have no covariance; give at least 2")
        return Statistics(self._mean.copy(), self._scatter / (self.num - 1), self.num, dict(record or {}))
