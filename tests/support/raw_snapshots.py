"""Folders of raw snapshots as published, and processes that end while they read them."""

from pathlib import Path
from typing import Any

import torch
from edm2_files import write_network
from torch import Tensor

from autoguidance.models import build_model

STDS = (0.05, 0.1)
PUBLISHED = {
    "img_resolution": 8,
    "img_channels": 3,
    "label_dim": 3,
    "model_channels": 8,
    "channel_mult": [1],
    "num_blocks": 1,
    "attn_resolutions": [],
    "channels_per_head": 8,
}


class Killed(BaseException):
    """Stands for a process that ends here and now."""


class Interrupter:
    """Ends the process (as seen by the code) at the n-th call of a progress callback."""

    def __init__(self, after: int) -> None:
        self.after, self.first_done = after, -1

    def __call__(self, done: int, total: int, figures: dict[str, Any]) -> None:
        self.first_done = done if self.first_done < 0 else self.first_done
        self.after -= 1
        if self.after == 0:
            raise Killed


def write_published(folder: Path, times: int = 4, prefix: str = "network-snapshot") -> dict[Any, dict[str, Tensor]]:
    """Pickles as published, float16, and what is in them by (images, width)."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = build_model(PUBLISHED).state_dict()
    content = {}
    for step in range(1, times + 1):
        for std in STDS:
            state = {
                name: value
                if name.endswith(("freqs", "phases"))
                else value + 0.05 * torch.randn(value.shape, generator=generator)
                for name, value in state.items()
            }
            content[step * 2**25, std] = {name: value.half() for name, value in state.items()}
            name = f"{prefix}-{step * 2**25 // 1000:07d}-{std:.3f}.pkl"
            write_network(folder / name, PUBLISHED, state)
    return content
