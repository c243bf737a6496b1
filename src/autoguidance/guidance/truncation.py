"""Naive truncation: the paper's negative control.

    D(x; sigma) = x + c (D_main(x; sigma) - x)

multiplies the score by a constant: samples concentrate, but around the model's own mistakes as well.

Reference: Karras et al. 2024, arXiv 2406.02507, Section 3 (Figure 1d).
"""

import math

from torch import Tensor

from autoguidance.diffusion.denoiser import Denoiser
from autoguidance.errors import UserError
from autoguidance.guidance.guided import Guided, Interval


class NaiveTruncation(Guided):
    """The main model with its score multiplied by `factor` > 0 (1 is off), a Denoiser."""

    def __init__(self, main: Denoiser, factor: float = 1.4, interval: Interval | None = None) -> None:
        super().__init__(main, interval)
        if not (math.isfinite(factor) and factor > 0):
            raise UserError(f"truncation factor {factor} is out of range; choose a positive number (1 is off)")
        self.factor = float(factor)

    def is_off(self) -> bool:
        """True at factor 1."""
        return self.factor == 1

    def combine(self, x: Tensor, sigma: Tensor, labels: Tensor | None, denoised: Tensor) -> Tensor:
        """x + c (D - x)."""
        return x + self.factor * (denoised - x)
