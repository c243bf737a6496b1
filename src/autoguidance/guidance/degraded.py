"""A model made worse on purpose: for experiments on what a guide must have in common with its main model.

    dropout   the network with its dropout on, at a rate p, in the residual blocks where training would have it
    noise     D(x + sigma sqrt((1 + s)^2 - 1) n, (1 + s) sigma): the network sees x with its noise level raised by a share s. It is
              told the true level, so it is an honest denoiser of a worse image, and not one that leaves noise behind

What is random is a function of x: of the image for noise, of the whole batch for dropout (a batch is always cut the same way), so the
same seeds give the same images again. Two strengths draw independently of each other.

Reference: Karras et al. 2024, arXiv 2406.02507, Section 4 (the effect of degradations that match or do not). Whether the paper tells the
network the raised level is not stated in our sources.
"""

import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autoguidance.diffusion.denoiser import Denoiser, device_of, encoder_of, per_image
from autoguidance.errors import UserError

KINDS = ("dropout", "noise")


@dataclass(frozen=True)
class Degradation:
    """What is done to a model.

    Attributes:
        kind: one of `KINDS`.
        strength: p in [0, 1) for dropout, s >= 0 for noise; 0 changes nothing.
    """

    kind: str
    strength: float

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"unknown degradation {self.kind!r}; choose one of {', '.join(KINDS)}")
        below = 1 if self.kind == "dropout" else math.inf
        if not 0 <= self.strength < below:
            raise UserError(f"{self.kind} of {self.strength} is out of range; choose 0 to below {below:g}")

    def __str__(self) -> str:
        return f"{self.kind} {self.strength:.0%}"


class Degraded:
    """A denoiser under a degradation, a Denoiser.

    Args:
        denoiser: a network, or what passes its calls on to one by an attribute `denoiser`.
        degradation: what is done to it.

    Raises: UserError for dropout of something that is no network with dropout in it.
    """

    def __init__(self, denoiser: Denoiser, degradation: Degradation) -> None:
        self.denoiser, self.degradation = denoiser, degradation
        self.img_resolution, self.img_channels = denoiser.img_resolution, denoiser.img_channels
        self.num_classes, self.sigma_data = denoiser.num_classes, denoiser.sigma_data
        self.device: torch.device = device_of(denoiser)
        self.encoder: dict[str, Any] | None = encoder_of(denoiser)
        self.class_names: tuple[str, ...] = tuple(getattr(denoiser, "class_names", ()))
        self._network = _network(denoiser) if degradation.kind == "dropout" else None

    def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """Denoise, worse."""
        strength = self.degradation.strength
        if strength == 0:
            return self.denoiser(x, sigma, labels)
        if self._network is not None:
            devices = [x.device] if x.is_cuda else []
            with torch.random.fork_rng(devices=devices), _dropout(self._network, strength):
                torch.manual_seed(self._seed(x))
                return self.denoiser(x, sigma, labels)
        noise = torch.stack([self._noise(image) for image in x.cpu()]).to(x)
        level = per_image(sigma, x)
        noisier = x + level * math.sqrt((1 + strength) ** 2 - 1) * noise
        return self.denoiser(noisier, level.reshape(-1) * (1 + strength), labels)

    def _seed(self, x: Tensor) -> int:
        return zlib.crc32(x.detach().cpu().contiguous().numpy().tobytes(), zlib.crc32(str(self.degradation).encode()))

    def _noise(self, image: Tensor) -> Tensor:
        return torch.randn(image.shape, generator=torch.Generator().manual_seed(self._seed(image)))


def degrade(denoiser: Denoiser, degradation: Degradation | None) -> Denoiser:
    """The denoiser under a degradation; itself for None."""
    return denoiser if degradation is None else Degraded(denoiser, degradation)


def _network(denoiser: object) -> nn.Module:
    while not isinstance(denoiser, nn.Module):
        denoiser = getattr(denoiser, "denoiser", None)
        if denoiser is None:
            raise UserError("dropout needs a network; a guided pair has none of its own")
    if not _blocks(denoiser):
        raise UserError("the network has no blocks with dropout, so it cannot be degraded by it")
    return denoiser


def _blocks(network: nn.Module) -> list[nn.Module]:
    return [module for module in network.modules() if isinstance(getattr(module, "dropout", None), float)]


@contextmanager
def _dropout(network: nn.Module, rate: float) -> Iterator[None]:
    """Dropout on in the blocks. Their convolutions stay in evaluation mode: in training they would rewrite their weights. The network
    itself is marked as training, so that it does not replay a recording without dropout."""
    blocks: list[Any] = _blocks(network)
    before = [(block, block.dropout, block.training) for block in blocks]
    was_training = network.training
    try:
        network.training = True
        for block in blocks:
            block.dropout, block.training = rate, True
        yield
    finally:
        network.training = was_training
        for block, dropout, training in before:
            block.dropout, block.training = dropout, training
