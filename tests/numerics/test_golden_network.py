"""Layers and networks against the numbers of the reference program (../shared/golden)."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from autoguidance.models import Precond
from autoguidance.models.layers import mp_cat, mp_silu, mp_sum, normalize, resample

Net = Callable[[str], tuple[Precond, dict[str, Tensor]]]

PRIMITIVES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "normalize_all": lambda a, b: normalize(a),
    "normalize_dim1": lambda a, b: normalize(a, dim=1),
    "mp_sum": lambda a, b: mp_sum(a, a.flip(0), 0.3),
    "mp_cat": lambda a, b: mp_cat(a, b, 0.6),
    "mp_silu": lambda a, b: mp_silu(a),
    "down11": lambda a, b: resample(a, [1, 1], "down"),
    "up11": lambda a, b: resample(a, [1, 1], "up"),
    "down1331": lambda a, b: resample(a, [1, 3, 3, 1], "down"),
    "up1331": lambda a, b: resample(a, [1, 3, 3, 1], "up"),
}


def relative_error(value: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest expected value."""
    assert value.shape == expected.shape
    return float((value - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("name", PRIMITIVES)
def test_primitive(name: str, golden: Callable[[str], Path]) -> None:
    values = load_file(golden("primitives.safetensors"))
    result = PRIMITIVES[name](values["a"], values["b"])
    assert result.shape == values[name].shape
    assert (result - values[name]).abs().max() <= 1e-6 * max(1.0, float(values[name].abs().max()))


def test_every_golden_primitive_is_compared(golden: Callable[[str], Path]) -> None:
    assert set(load_file(golden("primitives.safetensors"))) == {"a", "b", *PRIMITIVES}


@pytest.mark.parametrize("name", ["cond", "uncond", "guide"])
def test_network(name: str, golden_net: Net) -> None:
    model, io = golden_net(name)
    with torch.no_grad():
        assert relative_error(model(io["x"], io["sigma"], io.get("labels")), io["denoised"]) <= 1e-5
        assert relative_error(model.logvar(io["sigma"]), io["logvar"]) <= 1e-5
        # Once more, now from the cached weights: bitwise the same.
        first, again = (model(io["x"], io["sigma"], io.get("labels")) for _ in range(2))
    assert torch.equal(first, again)


@pytest.mark.parametrize("name", ["cond", "guide"])
def test_missing_label_is_the_zero_vector(name: str, golden_net: Net) -> None:
    model, io = golden_net(name)
    with torch.no_grad():
        denoised = model(io["x"], io["sigma"])
        assert torch.equal(denoised, model(io["x"], io["sigma"], torch.zeros_like(io["labels"])))
    assert relative_error(denoised, io["denoised_null_label"]) <= 1e-5
    # The comparison means something only if the labels matter.
    assert relative_error(io["denoised"], io["denoised_null_label"]) > 1e-2


def test_unconditional_network_ignores_labels(golden_net: Net) -> None:
    model, io = golden_net("uncond")
    with torch.no_grad():
        assert torch.equal(model(io["x"], io["sigma"], torch.ones(3, 7)), model(io["x"], io["sigma"]))


def test_gradient_path_agrees_with_the_cached_one(golden_net: Net) -> None:
    model, io = golden_net("cond")
    with torch.no_grad():
        cached = model(io["x"], io["sigma"], io["labels"])
    with torch.enable_grad():
        x = io["x"].clone().requires_grad_(True)
        denoised = model(x, io["sigma"], io["labels"])
        (gradient,) = torch.autograd.grad(denoised.sum(), x)
    assert torch.equal(cached, denoised.detach())
    assert gradient.abs().max() > 0
