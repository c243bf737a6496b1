"""Kernel distance (KID): do two feature sets differ, without assuming that they are Gaussian and without bias?

Features x_1 .. x_m of generated and y_1 .. y_m of real images, in R^d. With the polynomial kernel of degree 3

    k(x, y) = (x . y / d + 1)^3

the squared maximum mean discrepancy is estimated without bias, so it may come out below zero, by

    MMD^2 = sum_{i != j} [k(x_i, x_j) + k(y_i, y_j)] / (m (m - 1))  -  2 sum_{i, j} k(x_i, y_j) / m^2

KID is its mean over 100 random subsets of m = 1000 of each set (smaller where there are fewer images), and its
spread the standard deviation over the subsets (divisor n, as torch-fidelity gives it). It is no standard error of the
mean: subsets overlap. The subsets are those that torch-fidelity draws (NumPy's RandomState, seed 2020), so equal
features in equal order give its figures. Products and sums are in float64: k is about 1 and KID often 1e-4.

Unlike the Fréchet distance, KID does not fall with the number of images; its spread does.

Reference: Binkowski et al. 2018, "Demystifying MMD GANs", arXiv 1801.01401; Obukhov et al. 2020, torch-fidelity.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from autoguidance.errors import UserError
from autoguidance.evaluate.processes import Processes


@dataclass(frozen=True, kw_only=True)
class KidSettings:
    """Which subsets are drawn.

    Attributes:
        subsets: how many, at least 1.
        subset_size: m, at least 2; fewer where a set has fewer images.
        seed: of the draw.
    """

    subsets: int = 100
    subset_size: int = 1000
    seed: int = 2020

    def __post_init__(self) -> None:
        if self.subsets < 1 or self.subset_size < 2:
            raise UserError(
                f"KID over {self.subsets} subsets of {self.subset_size}: give at least 1 subset of 2 images"
            )

    def describe(self) -> dict[str, Any]:
        """JSON-like, for the protocol."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Kid:
    """A kernel distance.

    Attributes:
        mean: of MMD^2 over the subsets; may be below zero.
        spread: standard deviation over the subsets; 0 where all are the whole sets.
        subset_size: m that was used.
    """

    mean: float
    spread: float
    subset_size: int


def _mmd2(x: Float64[Tensor, "m d"], y: Float64[Tensor, "m d"]) -> float:
    count, dimension = x.shape

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / dimension + 1) ** 3

    within = 0.0
    for rows in (x, y):
        values = kernel(rows, rows)
        within += float(values.sum() - values.diagonal().sum())
    return within / (count * (count - 1)) - 2 * float(kernel(x, y).sum()) / count**2


def kernel_distance(
    generated: Float[np.ndarray, "n d"],
    real: Float[np.ndarray, "k d"],
    settings: KidSettings | None = None,
    *,
    device: torch.device | str = "cpu",
    processes: Processes | None = None,
) -> Kid:
    """KID between two sets of features.

    Args:
        generated, real: float32 or float64 features of one network.
        settings: subsets; None: 100 of 1000.
        device: where the kernels are computed, in float64.
        processes: share the subsets; every process must hold all features, and gets the result.

    Raises:
        UserError: other dimensions, or fewer than two images.
    """
    settings = settings or KidSettings()
    processes = processes or Processes()
    if generated.ndim != 2 or real.ndim != 2 or generated.shape[1] != real.shape[1]:
        raise UserError(
            f"features {list(generated.shape)} and {list(real.shape)} do not compare; use one feature network"
        )
    size = min(settings.subset_size, len(generated), len(real))
    if size < 2:
        raise UserError(f"KID of {len(generated)} and {len(real)} images is not defined; give at least 2 of each")
    # A subset that is the whole of both sets need not be taken twice.
    num_subsets = 1 if size == len(generated) == len(real) else settings.subsets
    draw = np.random.RandomState(settings.seed)
    mine = processes.part(num_subsets)
    values = []
    for number in range(num_subsets):
        chosen = [draw.choice(len(features), size, replace=False) for features in (generated, real)]
        if number in mine:
            x, y = (
                torch.from_numpy(features[rows]).to(device, torch.float64)
                for features, rows in zip((generated, real), chosen, strict=True)
            )
            values.append(_mmd2(x, y))
    every = np.concatenate([np.asarray(part, dtype=np.float64) for part in processes.gather(values)])
    return Kid(mean=float(every.mean()), spread=float(every.std()), subset_size=size)
