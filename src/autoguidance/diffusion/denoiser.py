"""The one idea that carries everything: a denoiser is a function D(x; sigma, labels) -> denoised.

Notation: clean images (or latents) y [N, C, H, W] with standard deviation sigma_data; x = y + sigma * n with n ~ N(0,
I); the ideal denoiser is D(x; sigma) = E[y | x]. The score is (D(x; sigma) - x) / sigma^2. A guided pair is built
from denoisers and is one itself, so a sampler never knows whether it runs one network, two, or three.

Reference: Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models", arXiv 2206.00364,
Eq. 2-3.
"""

from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from autoguidance.errors import UserError


@runtime_checkable
class Denoiser(Protocol):
    """What every network, guidance and test double offers.

    Attributes:
        img_resolution: H = W of x.
        img_channels: C of x.
        num_classes: length of a label vector; 0 for an unconditional denoiser, which ignores labels.
        sigma_data: standard deviation of the clean data that it expects.

    Optional attributes: `device` (where x must lie; the CPU if absent), `encoder` (JSON-like configuration of the data encoder that
    turns x back into images; plain pixels if absent), `class_names`.
    """

    @property
    def img_resolution(self) -> int: ...
    @property
    def img_channels(self) -> int: ...
    @property
    def num_classes(self) -> int: ...
    @property
    def sigma_data(self) -> float: ...

    def __call__(
        self,
        x: Float[Tensor, "N C H W"],
        sigma: Float[Tensor, ""] | Float[Tensor, "N"],
        labels: Float[Tensor, "N num_classes"] | None = None,
    ) -> Float[Tensor, "N C H W"]:
        """Denoise x at noise level sigma (a scalar, or one per image). labels None is the null label. Returns float32."""
        ...


def per_image(sigma: Tensor | float, x: Tensor) -> Float[Tensor, "N 1 1 1"]:
    """sigma as float32 on x's device, broadcastable against x [N, C, H, W]; one value or one per image."""
    value = torch.as_tensor(sigma, dtype=torch.float32, device=x.device).reshape(-1, 1, 1, 1)
    if value.shape[0] not in (1, x.shape[0]):
        raise UserError(f"sigma has {value.shape[0]} values for {x.shape[0]} images; give one, or one per image")
    return value.expand(x.shape[0], 1, 1, 1)


def device_of(denoiser: Denoiser) -> torch.device:
    """Where a denoiser wants its input: its `device` attribute, else the CPU."""
    return torch.device(getattr(denoiser, "device", "cpu"))


def encoder_of(denoiser: Denoiser) -> dict[str, Any] | None:
    """Configuration of the encoder whose latents the denoiser works on; None is plain pixels."""
    return getattr(denoiser, "encoder", None)
