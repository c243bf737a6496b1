"""What sampling costs: counts the images that go through each network."""

from typing import Any

import torch
from torch import Tensor

from autoguidance.diffusion.denoiser import Denoiser, device_of, encoder_of


class Counted:
    """A Denoiser that passes everything on and counts the images it evaluated (`num_evaluations`)."""

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser = denoiser
        self.num_evaluations = 0
        self.img_resolution = denoiser.img_resolution
        self.img_channels = denoiser.img_channels
        self.num_classes = denoiser.num_classes
        self.sigma_data = denoiser.sigma_data
        self.device: torch.device = device_of(denoiser)
        self.encoder: dict[str, Any] | None = encoder_of(denoiser)
        self.class_names: tuple[str, ...] = tuple(getattr(denoiser, "class_names", ()))

    def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """Denoise and count."""
        self.num_evaluations += x.shape[0]
        return self.denoiser(x, sigma, labels)
