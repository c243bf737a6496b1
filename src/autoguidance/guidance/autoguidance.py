"""Autoguidance: guide a model with a bad version of itself.

    D_w(x; sigma, c) = D_guide + w (D_main - D_guide)                                            (Eq. 3)

The guide has the same task, data and condition, but is smaller and/or trained for less time. It makes the same kinds
of errors, only stronger, so the difference points towards better samples and vanishes where the two agree; variety is
kept.

Reference: Karras et al. 2024, "Guiding a Diffusion Model with a Bad Version of Itself", arXiv 2406.02507.
"""

import torch
from torch import Tensor

from autoguidance.diffusion.denoiser import Denoiser
from autoguidance.guidance.guided import Guided, Interval, check_weight, require_compatible


class Autoguidance(Guided):
    """D_guide + w (D_main - D_guide), a Denoiser. Not to be confused with classifier-free guidance, whose guide lacks the condition.

    Args:
        main: the better model.
        guide: its bad version; same resolution, channels, classes, sigma_data and encoder.
        weight: w in [0, 100]; 1 is the main model alone, and then the guide is never called; 0 the guide alone.
        interval: guide only while sigma_lo < sigma <= sigma_hi; None: always (the paper found that an interval hurts a little here).

    Raises: UserError where the two models or the weight do not fit.
    """

    def __init__(self, main: Denoiser, guide: Denoiser, weight: float = 2.0, interval: Interval | None = None) -> None:
        super().__init__(main, interval)
        require_compatible(main, guide, same_classes=True)
        self.guide = guide
        self.weight = check_weight(weight)

    def is_off(self) -> bool:
        """True at w = 1."""
        return self.weight == 1

    def combine(self, x: Tensor, sigma: Tensor, labels: Tensor | None, denoised: Tensor) -> Tensor:
        """Eq. 3."""
        return torch.lerp(self.guide(x, sigma, labels), denoised, self.weight)
