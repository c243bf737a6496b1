"""A small in-memory image source and a run that takes a second."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from autoguidance.train.config import NetworkConfig, TrainConfig


@dataclass
class Blocks:
    """Random 8 x 8 grey images in three classes."""

    num_images: int = 20
    resolution: int = 8
    channels: int = 1
    class_names: tuple[str, ...] = ("a", "b", "c")
    name: str = "blocks"
    fingerprint: str = "f" * 64

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        shape = (self.num_images, self.channels, self.resolution, self.resolution)
        self.images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        self.class_idx = np.arange(self.num_images) % len(self.class_names) if self.class_names else None

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def read(self, indices: Any) -> torch.Tensor:
        return self.images[torch.as_tensor(indices)]


@pytest.fixture
def blocks() -> Blocks:
    return Blocks()


@pytest.fixture
def make_blocks() -> Callable[..., Blocks]:
    return Blocks


@pytest.fixture
def make_config() -> Callable[..., TrainConfig]:
    """A configuration whose step takes some 20 ms; keyword arguments change it."""

    def make(**changes: Any) -> TrainConfig:
        network = NetworkConfig(
            model_channels=4, channel_mult=(1, 2), num_blocks=1, attn_resolutions=(), channels_per_head=4
        )
        settings = {"network": network, "num_images": 64, "batch_size": 8, "num_snapshots": 2, "log_images": 16}
        return TrainConfig(**{**settings, "rampup_images": 16, **changes})

    return make
