"""Several guides at once.

    D_w = D_main + sum_i (w_i - 1) (D_main - D_i)                                                  (Eq. 6)

Reference: Karras et al. 2024, arXiv 2406.02507, Eq. 6 and Section 5.4.
"""

from collections.abc import Sequence

from torch import Tensor

from autoguidance.diffusion.denoiser import Denoiser
from autoguidance.errors import UserError
from autoguidance.guidance.guided import Guided, Interval, check_weight, require_compatible


def mixing_weights(weight: float, alpha: float) -> tuple[float, float]:
    """(w of the unconditional guide, w of the bad version) for total strength `weight` and alpha in [0, 1] from CFG to autoguidance."""
    if not 0 <= alpha <= 1:
        raise UserError(f"alpha is {alpha}; choose one in [0, 1] (0 is CFG, 1 is autoguidance)")
    return (1 - alpha) * (weight - 1) + 1, alpha * (weight - 1) + 1


class MultiGuidance(Guided):
    """D_main + sum_i (w_i - 1)(D_main - D_i), a Denoiser.

    Args:
        main: the model to guide.
        guides: pairs (guide, w_i). A guide with as many classes as main gets the labels; an unconditional one does not. A guide with
            w_i = 1 is never called.
        interval: guide only while sigma_lo < sigma <= sigma_hi; None: always.
    """

    def __init__(
        self, main: Denoiser, guides: Sequence[tuple[Denoiser, float]], interval: Interval | None = None
    ) -> None:
        super().__init__(main, interval)
        if not guides:
            raise UserError("MultiGuidance needs at least one guide; use the main model itself otherwise")
        for guide, _ in guides:
            require_compatible(main, guide, same_classes=guide.num_classes != 0)
        self.guides = [(guide, check_weight(weight)) for guide, weight in guides]

    def is_off(self) -> bool:
        """True where every weight is 1."""
        return all(weight == 1 for _, weight in self.guides)

    def combine(self, x: Tensor, sigma: Tensor, labels: Tensor | None, denoised: Tensor) -> Tensor:
        """Eq. 6."""
        result = denoised
        for guide, weight in self.guides:
            if weight != 1:
                result = result + (weight - 1) * (denoised - guide(x, sigma, labels if guide.num_classes else None))
        return result
