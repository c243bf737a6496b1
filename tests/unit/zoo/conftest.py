"""A run folder with snapshots of a small network at two times."""

from pathlib import Path
from typing import Any

import pytest
import torch

from autoguidance.ema import snapshot_name
from autoguidance.models import ModelInfo, build_model, save_model
from autoguidance.storage import Manifest

CONFIG: dict[str, Any] = {
    "img_resolution": 8,
    "img_channels": 1,
    "label_dim": 3,
    "model_channels": 8,
    "channel_mult": [1],
    "num_blocks": 1,
    "attn_resolutions": [],
    "channels_per_head": 8,
}
TIMES = (1024, 2048, 4096)
STDS = (0.05, 0.1)


def write_run(folder: Path, *, label_dim: int = 3, provenance: dict[str, Any] | None = None) -> Path:
    config = {**CONFIG, "label_dim": label_dim}
    manifest = Manifest(folder)
    generator = torch.Generator().manual_seed(label_dim)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = build_model(config).state_dict()
    for time in TIMES:
        for std in STDS:
            for name, value in state.items():
                if name.rpartition(".")[2] not in ("freqs", "phases"):
                    value += 0.1 * torch.randn(value.shape, generator=generator)
            path = folder / "snapshots" / snapshot_name(time, std)
            names = ("a", "b", "c")[:label_dim]
            info = ModelInfo(
                config=config,
                encoder={"name": "pixels", "channels": 1, "resolution": 8},
                class_names=names,
                num_images=time,
                ema_std=std,
                provenance=provenance or {},
            )
            save_model(path, state, info)
            manifest.commit(path)
    return folder


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("zoo") / "main")


@pytest.fixture(scope="session")
def unconditional(run: Path) -> Path:
    return write_run(run.parent / "unconditional", label_dim=0)


PROVENANCE = {
    "preset": "nano",
    "config_sha256": "c" * 64,
    "data": "/home/someone/stripes.zip",
    "data_fingerprint": "d" * 64,
    "code_version": "0.1.0",
}


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder whose snapshots say, as those of `train` do, what they were trained on and with."""
    return write_run(tmp_path_factory.mktemp("trained") / "main", provenance=PROVENANCE)
