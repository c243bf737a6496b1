"""Euler's first-order method (deterministic DDIM in this parametrization): N network evaluations for N steps.

Reference: Karras et al. 2022, arXiv 2206.00364, Section 3; Song et al. 2021, arXiv 2010.02502.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from autoguidance.sample.solver import Solver


@dataclass(frozen=True, kw_only=True)
class Euler(Solver):
    """One slope per step."""

    def step(self, slope: Callable[[Tensor, float], Tensor], x: Tensor, sigma: float, sigma_next: float) -> Tensor:
        """One explicit step."""
        return x + (sigma_next - sigma) * slope(x, sigma)
