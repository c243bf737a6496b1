"""The small random networks of the golden files."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from autoguidance.models import Precond, build_model


@pytest.fixture(scope="session")
def golden_net(golden: Callable[[str], Path]) -> Callable[[str], tuple[Precond, dict[str, Tensor]]]:
    """A golden network in evaluation mode, and the inputs and outputs that the reference program saw."""

    def make(name: str) -> tuple[Precond, dict[str, Tensor]]:
        path = golden(f"net-{name}.io.safetensors")
        with safe_open(str(path), "pt") as file:
            config = json.loads(file.metadata()["config"])
        model = build_model(config).eval().requires_grad_(False)
        model.load_state_dict(load_file(golden(f"net-{name}.weights.safetensors")))
        return model, load_file(path)

    return make
