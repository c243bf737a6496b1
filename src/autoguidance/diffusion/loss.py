"""The denoising loss with learned uncertainty.

For clean y [N, C, H, W], noise level sigma = exp(P_mean + P_std z) with z ~ N(0, 1) per image, and noise n ~ N(0, I):

    loss = lambda(sigma) / exp(u(sigma)) * (D(y + sigma n; sigma) - y)^2 + u(sigma),   lambda = (sigma^2 + sd^2) / (sigma sd)^2

per element. u is the network's own estimate of the log of the first term's expectation, so that every noise level has
the same weight in the gradient. A step goes down the gradient of loss.sum() / batch.

Reference: Karras et al. 2022, arXiv 2206.00364, Eq. 8; Karras et al. 2024, arXiv 2312.02696, Eq. 14-15 and 21.
"""

from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from autoguidance.diffusion.denoiser import Denoiser


class TrainableDenoiser(Denoiser, Protocol):
    """A denoiser that also estimates its own log-variance."""

    def logvar(self, sigma: Tensor) -> Float[Tensor, "N 1 1 1"]:
        """u(sigma), one value per image."""
        ...


def edm_loss(
    denoiser: TrainableDenoiser,
    clean: Float[Tensor, "N C H W"],
    labels: Float[Tensor, "N num_classes"] | None,
    sigma_normal: Float[Tensor, "N"],
    noise: Float[Tensor, "N C H W"],
    *,
    p_mean: float,
    p_std: float,
) -> Float[Tensor, "N C H W"]:
    """The loss per element; every random number is an argument, so that a step can be repeated exactly.

    Args:
        denoiser: the network in training.
        clean: images or latents.
        labels: one-hot, or None.
        sigma_normal: z per image, standard normal.
        noise: standard normal, clean's shape.
        p_mean, p_std: mean and standard deviation of ln sigma.
    """
    sigma = (p_mean + p_std * sigma_normal).exp().reshape(-1, 1, 1, 1)
    sigma_data = denoiser.sigma_data
    weight = (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
    denoised = denoiser(clean + noise * sigma, sigma, labels)
    logvar = denoiser.logvar(sigma)
    return (weight / torch.exp(logvar)) * (denoised - clean) ** 2 + logvar
