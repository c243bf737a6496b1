"""What every guided pair shares: it looks like its main model, its parts fit together, and guidance may be limited to
an interval.

Limited interval: guidance acts only while sigma_lo < sigma <= sigma_hi; elsewhere the result is the main model's
bitwise and no guide is evaluated. The test is on the sigma that D receives.

Reference for the interval: Kynkäänniemi et al. 2024, arXiv 2404.07724.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from autoguidance.diffusion.denoiser import Denoiser, device_of, encoder_of
from autoguidance.errors import UserError

Interval = tuple[float, float]
MAX_WEIGHT = 100.0


def check_weight(weight: float) -> float:
    """A guidance weight in [0, MAX_WEIGHT]; 1 is off. Raises UserError otherwise."""
    if not (math.isfinite(weight) and 0 <= weight <= MAX_WEIGHT):
        raise UserError(
            f"guidance weight {weight} is out of range; choose one in [0, {MAX_WEIGHT:g}] (1 is off, 1.05 to 4 is usual)"
        )
    return float(weight)


def check_interval(interval: Interval | None) -> Interval | None:
    """(sigma_lo, sigma_hi] with 0 <= lo < hi (hi may be infinite), or None. Raises UserError otherwise."""
    if interval is None:
        return None
    low, high = interval
    if not (0 <= low < high) or math.isinf(low):
        raise UserError(f"guidance interval ({low}, {high}] is empty or negative; choose 0 <= sigma_lo < sigma_hi")
    return float(low), float(high)


class Guided(ABC):
    """Base of the guidance methods: a Denoiser with the main model's attributes.

    Subclasses implement `combine` for the images inside the interval and say by `is_off` whether they change anything at all.
    """

    def __init__(self, main: Denoiser, interval: Interval | None = None) -> None:
        self.main = main
        self.interval = check_interval(interval)

    @property
    def img_resolution(self) -> int:
        """Resolution of the main model."""
        return self.main.img_resolution

    @property
    def img_channels(self) -> int:
        """Channels of the main model."""
        return self.main.img_channels

    @property
    def num_classes(self) -> int:
        """Classes of the main model."""
        return self.main.num_classes

    @property
    def sigma_data(self) -> float:
        """Data standard deviation of the main model."""
        return self.main.sigma_data

    @property
    def device(self) -> torch.device:
        """Device of the main model."""
        return device_of(self.main)

    @property
    def encoder(self) -> dict[str, Any] | None:
        """Encoder of the main model."""
        return encoder_of(self.main)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names of the main model."""
        return tuple(getattr(self.main, "class_names", ()))

    @abstractmethod
    def is_off(self) -> bool:
        """Whether the result is the main model's for every input."""

    @abstractmethod
    def combine(self, x: Tensor, sigma: Tensor, labels: Tensor | None, denoised: Tensor) -> Tensor:
        """The guided result, given the main model's."""

    def __call__(
        self,
        x: Float[Tensor, "N C H W"],
        sigma: Tensor,
        labels: Float[Tensor, "N num_classes"] | None = None,
    ) -> Float[Tensor, "N C H W"]:
        """Denoise x with guidance; see `Denoiser`."""
        sigma = torch.as_tensor(sigma, dtype=torch.float32)
        denoised = self.main(x, sigma, labels)
        if self.is_off():
            return denoised
        inside = self._inside(sigma)
        if inside.ndim == 0 or inside.numel() == 1 or bool(inside.all()):
            return self.combine(x, sigma, labels, denoised) if bool(inside.all()) else denoised
        if not bool(inside.any()):
            return denoised
        chosen = inside.to(x.device)
        part = self.combine(x[chosen], sigma[inside], None if labels is None else labels[chosen], denoised[chosen])
        denoised = denoised.clone()
        denoised[chosen] = part
        return denoised

    def _inside(self, sigma: Tensor) -> Bool[Tensor, "..."]:
        sigma = sigma.reshape(-1) if sigma.ndim else sigma
        if self.interval is None:
            return torch.ones_like(sigma, dtype=torch.bool)
        low, high = self.interval
        return (sigma > low) & (sigma <= high)


def require_compatible(main: Denoiser, guide: Denoiser, *, same_classes: bool, role: str = "guide") -> None:
    """Raise UserError where two models cannot form a pair: they denoise different spaces, or take different conditions."""
    names: dict[str, Callable[[Denoiser], object]] = {
        "resolution": lambda model: model.img_resolution,
        "channels": lambda model: model.img_channels,
        "sigma_data": lambda model: model.sigma_data,
        "encoder": lambda model: encoder_of(model) or {"name": "pixels"},
        "device": device_of,
    }
    if same_classes:
        names["number of classes"] = lambda model: model.num_classes
        if getattr(main, "class_names", ()) and getattr(guide, "class_names", ()):
            names["class names"] = lambda model: tuple(getattr(model, "class_names", ()))
    for name, read in names.items():
        if read(main) != read(guide):
            raise UserError(
                f"main and {role} do not fit: {name} {read(main)} against {read(guide)}; choose two models trained on the same data"
            )


def licences_of(denoiser: Denoiser) -> list[str]:
    """Licences that a denoiser, or the models it is guided by, name in their `licence` attribute; sorted, each once."""
    licence = getattr(denoiser, "licence", None)
    found = {licence} if licence else set()
    parts = [getattr(denoiser, name, None) for name in ("main", "guide", "unconditional")]
    for part in [*parts, *(guide for guide, _ in getattr(denoiser, "guides", ()))]:
        if part is not None:
            found.update(licences_of(part))
    return sorted(found)
