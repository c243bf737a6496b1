"""Small networks, and doubles that count."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from autoguidance.models import Precond, build_model

CONFIG: dict[str, Any] = {
    "img_resolution": 8,
    "img_channels": 1,
    "label_dim": 3,
    "model_channels": 8,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [],
    "channels_per_head": 8,
}


def make_network(seed: int = 0, **changes: Any) -> Precond:
    """A random network whose zero-initialised gains are set, so that input, noise level and label all count."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build_model({**CONFIG, **changes}).eval().requires_grad_(False)
        for name, parameter in model.named_parameters():
            if parameter.ndim == 0:
                parameter.fill_(0.8 if name.endswith("out_gain") else 0.5)
    return model


class Linear:
    """A plain callable with a Denoiser's signature and attributes: D = scale * x + offset[label]; it counts its calls."""

    def __init__(self, scale: float, *, num_classes: int = 3, **attributes: Any) -> None:
        self.scale, self.num_classes = scale, num_classes
        self.img_resolution, self.img_channels, self.sigma_data = 8, 1, 0.5
        self.__dict__.update(attributes)
        self.calls: list[tuple[int, Tensor, Tensor | None]] = []

    def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        self.calls.append((x.shape[0], torch.as_tensor(sigma), labels))
        offset = torch.zeros(x.shape[0]) if labels is None else labels @ torch.arange(1.0, 1 + labels.shape[1])
        return self.scale * x + offset.reshape(-1, 1, 1, 1) * torch.as_tensor(sigma).reshape(-1, 1, 1, 1)


@pytest.fixture(scope="session")
def network() -> Callable[..., Precond]:
    return make_network


@pytest.fixture
def linear() -> type[Linear]:
    return Linear


@pytest.fixture(scope="session")
def inputs() -> tuple[Tensor, Tensor]:
    """x [4, 1, 8, 8] and one-hot labels [4, 3]."""
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(5))
    return x, torch.eye(3)[[0, 2, 1, 0]]
