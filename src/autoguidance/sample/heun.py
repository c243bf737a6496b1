"""Heun's second-order method, the solver of EDM: 2N - 1 network evaluations for N steps.

Reference: Karras et al. 2022, arXiv 2206.00364, Algorithm 1.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from autoguidance.sample.solver import Solver


@dataclass(frozen=True, kw_only=True)
class Heun(Solver):
    """Euler step, then the average of the slopes at both ends, except in the last step, which ends at sigma = 0."""

    def step(self, slope: Callable[[Tensor, float], Tensor], x: Tensor, sigma: float, sigma_next: float) -> Tensor:
        """One trapezoidal step."""
        start = slope(x, sigma)
        euler = x + (sigma_next - sigma) * start
        if sigma_next == 0:
            return euler
        return x + (sigma_next - sigma) * (0.5 * start + 0.5 * slope(euler, sigma_next))
