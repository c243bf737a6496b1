"""Classifier-free guidance: the guide does not know the condition.

    D_w(x; sigma, c) = D(x; sigma) + w (D(x; sigma, c) - D(x; sigma))

Quality rises because samples move to where the class is certain; variety falls for the same reason.

Reference: Ho & Salimans 2022, arXiv 2207.12598; in this notation Karras et al. 2024, arXiv 2406.02507, Section 2.
"""

import torch
from torch import Tensor

from autoguidance.diffusion.denoiser import Denoiser
from autoguidance.errors import UserError
from autoguidance.guidance.guided import Guided, Interval, check_weight, require_compatible


class ClassifierFree(Guided):
    """D_uncond + w (D_cond - D_uncond), a Denoiser.

    Args:
        main: a class-conditional model.
        unconditional: a model without classes; None: the main model itself with the null label (meaningful only if it was trained with
            label dropout).
        weight: w in [0, 100] in this notation: 1 is off. (Some programs call w - 1 the scale.)
        interval: guide only while sigma_lo < sigma <= sigma_hi; None: always.

    Raises: UserError where main has no classes, or the two do not fit.
    """

    def __init__(
        self,
        main: Denoiser,
        unconditional: Denoiser | None = None,
        weight: float = 1.5,
        interval: Interval | None = None,
    ) -> None:
        super().__init__(main, interval)
        if main.num_classes == 0:
            raise UserError(
                "classifier-free guidance needs a class-conditional main model; use autoguidance for this one"
            )
        if unconditional is not None:
            require_compatible(main, unconditional, same_classes=False, role="unconditional model")
            if unconditional.num_classes:
                raise UserError(
                    f"the unconditional model has {unconditional.num_classes} classes; train one with --unconditional, "
                    "or use this one as an autoguidance guide"
                )
        self.unconditional = unconditional
        self.weight = check_weight(weight)

    def is_off(self) -> bool:
        """True at w = 1."""
        return self.weight == 1

    def combine(self, x: Tensor, sigma: Tensor, labels: Tensor | None, denoised: Tensor) -> Tensor:
        """The main model's result extrapolated away from the unconditional one."""
        guide = self.main if self.unconditional is None else self.unconditional
        return torch.lerp(guide(x, sigma, None), denoised, self.weight)
