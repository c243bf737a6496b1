"""A model made worse on purpose: off at strength 0, the same for the same input, nothing left behind."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from autoguidance.errors import UserError
from autoguidance.guidance import Autoguidance, Degradation, Degraded, degrade
from autoguidance.sample import Counted
from autoguidance.zoo import Pair

Make = Callable[..., Any]
SIGMA = torch.tensor(1.0)


@pytest.mark.parametrize("kind", ["dropout", "noise"])
def test_worse_but_a_function_of_its_input(kind: str, network: Make, inputs: tuple[Tensor, Tensor]) -> None:
    x, labels = inputs
    net = network(0)
    intact = net(x, SIGMA, labels)
    assert torch.equal(Degraded(net, Degradation(kind, 0))(x, SIGMA, labels), intact)
    weak, strong = (Degraded(Counted(net), Degradation(kind, strength)) for strength in (0.1, 0.4))
    state = torch.get_rng_state()
    first = weak(x, SIGMA, labels)
    assert torch.equal(torch.get_rng_state(), state)  # the caller's random numbers are not touched
    assert torch.equal(weak(x, SIGMA, labels), first)
    assert not torch.equal(weak(x + 1e-3, SIGMA, labels), first)
    # Stronger is further from the intact model, on average over many images.
    many = torch.randn(64, *x.shape[1:], generator=torch.Generator().manual_seed(0))
    errors = [(d(many, SIGMA) - net(many, SIGMA)).square().mean() for d in (weak, strong)]
    assert 0 < 2 * errors[0] < errors[1]
    # Nothing is left behind: the network is the intact one, in evaluation mode throughout.
    assert torch.equal(net(x, SIGMA, labels), intact)
    assert not any(module.training for module in net.modules())
    assert {module.dropout for module in net.modules() if hasattr(module, "dropout")} == {0.0}


def test_noise_raises_the_level_that_the_model_is_told(inputs: tuple[Tensor, Tensor]) -> None:
    seen = {}

    class Watching:
        img_resolution, img_channels, num_classes, sigma_data = 8, 1, 3, 0.5

        def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
            seen.update(x=x, sigma=sigma)
            return x

    many = torch.zeros(256, 1, 8, 8) + torch.arange(256.0).reshape(-1, 1, 1, 1)
    Degraded(Watching(), Degradation("noise", 0.2))(many, torch.tensor(3.0))
    torch.testing.assert_close(seen["sigma"], torch.full((256,), 3.6))
    added = (seen["x"] - many).std().item()
    assert math.hypot(3.0, added) == pytest.approx(3.6, rel=0.01)
    # Every image has noise of its own.
    assert not torch.equal(seen["x"][0] - many[0], seen["x"][1] - many[1])


def test_two_strengths_draw_independently(inputs: tuple[Tensor, Tensor]) -> None:
    x, _ = inputs

    class Same:
        img_resolution, img_channels, num_classes, sigma_data = 8, 1, 3, 0.5

        def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
            return x

    one, two = (Degraded(Same(), Degradation("noise", s))(x, SIGMA) - x for s in (0.1, 0.2))
    assert abs(torch.corrcoef(torch.stack([one.flatten(), two.flatten()]))[0, 1]) < 0.3


def test_what_cannot_be(network: Make, linear: Make, tmp_path: Any) -> None:
    for kind, strength in (
        ("blur", 0.1),
        ("dropout", 1.0),
        ("dropout", -0.1),
        ("noise", math.nan),
        ("noise", math.inf),
    ):
        with pytest.raises(UserError, match="unknown degradation" if kind == "blur" else "out of range"):
            Degradation(kind, strength)
    pair = Autoguidance(network(0), network(1), 2.0)
    with pytest.raises(UserError, match="dropout needs a network"):
        degrade(pair, Degradation("dropout", 0.1))
    with pytest.raises(UserError, match="dropout needs a network"):
        degrade(linear(0.7), Degradation("dropout", 0.1))
    assert degrade(pair, None) is pair
    damaged = Pair(main="a", main_degraded=Degradation("noise", 0.1))
    with pytest.raises(UserError, match="is not saved"):
        damaged.save(tmp_path / "pair.json")
    assert not (tmp_path / "pair.json").exists()
