"""One suite for every Denoiser: networks, guidance methods, wrappers and plain callables."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from autoguidance.diffusion.denoiser import Denoiser, device_of
from autoguidance.errors import UserError
from autoguidance.guidance import (
    Autoguidance,
    ClassifierFree,
    Degradation,
    Degraded,
    MultiGuidance,
    NaiveTruncation,
)
from autoguidance.sample import Counted, Heun, sample

Make = Callable[..., Any]

DENOISERS: dict[str, Callable[[Make, Make], Denoiser]] = {
    "network": lambda net, linear: net(0),
    "unconditional network": lambda net, linear: net(0, label_dim=0),
    "autoguidance": lambda net, linear: Autoguidance(net(0), net(1, model_channels=8, channel_mult=[1]), 2.0),
    "autoguidance, unconditional": lambda net, linear: Autoguidance(net(0, label_dim=0), net(1, label_dim=0), 2.0),
    "autoguidance in an interval": lambda net, linear: Autoguidance(net(0), net(1), 2.0, interval=(0.3, 2.0)),
    "cfg by null label": lambda net, linear: ClassifierFree(net(0), None, 1.5),
    "cfg by a model": lambda net, linear: ClassifierFree(net(0), net(1, label_dim=0), 1.5),
    "two guides": lambda net, linear: MultiGuidance(net(0), [(net(1), 1.8), (net(2, label_dim=0), 1.3)]),
    "truncation": lambda net, linear: NaiveTruncation(net(0), 1.4),
    "callable": lambda net, linear: linear(0.7),
    "guided callables": lambda net, linear: Autoguidance(linear(0.7), linear(0.3), 1.5),
    "nested": lambda net, linear: Autoguidance(ClassifierFree(net(0), None, 1.5), net(1), 1.5),
    "input noise": lambda net, linear: Degraded(net(0), Degradation("noise", 0.2)),
    "counted": lambda net, linear: Counted(net(0)),
}


@pytest.fixture(params=DENOISERS)
def denoiser(request: pytest.FixtureRequest, network: Make, linear: Make) -> Denoiser:
    return DENOISERS[request.param](network, linear)


def test_attributes(denoiser: Denoiser) -> None:
    assert isinstance(denoiser, Denoiser)
    assert (denoiser.img_resolution, denoiser.img_channels, denoiser.sigma_data) == (8, 1, 0.5)
    assert denoiser.num_classes in (0, 3)
    assert device_of(denoiser) == torch.device("cpu")


def test_result_is_float32_of_the_inputs_shape(denoiser: Denoiser, inputs: tuple[Tensor, Tensor]) -> None:
    x, labels = inputs
    denoised = denoiser(x, torch.tensor(1.0), labels)
    assert denoised.shape == x.shape
    assert denoised.dtype == torch.float32
    assert denoised.isfinite().all()
    assert not torch.equal(denoised, x)


def test_one_sigma_for_all_is_the_same_as_one_per_image(denoiser: Denoiser, inputs: tuple[Tensor, Tensor]) -> None:
    x, labels = inputs
    assert torch.equal(denoiser(x, torch.tensor(0.7), labels), denoiser(x, torch.full((4,), 0.7), labels))


def test_each_image_has_its_own_sigma(denoiser: Denoiser, inputs: tuple[Tensor, Tensor]) -> None:
    x, labels = inputs
    sigmas = torch.tensor([0.1, 0.5, 1.0, 20.0])
    together = denoiser(x, sigmas, labels)
    for index in range(4):
        part = slice(index, index + 1)
        alone = denoiser(x[part], sigmas[index], labels[part])
        torch.testing.assert_close(together[part], alone, rtol=1e-5, atol=1e-5)


def test_labels_may_be_missing(denoiser: Denoiser, inputs: tuple[Tensor, Tensor]) -> None:
    x, _ = inputs
    denoised = denoiser(x, torch.tensor(1.0))
    assert denoised.shape == x.shape
    assert torch.equal(denoised, denoiser(x, torch.tensor(1.0), None))


def test_inputs_are_left_alone(denoiser: Denoiser, inputs: tuple[Tensor, Tensor]) -> None:
    x, labels = (value.clone() for value in inputs)
    sigma = torch.tensor([0.1, 0.5, 1.0, 20.0])
    denoiser(x, sigma, labels)
    assert torch.equal(x, inputs[0])
    assert torch.equal(labels, inputs[1])
    assert torch.equal(sigma, torch.tensor([0.1, 0.5, 1.0, 20.0]))


def test_can_be_sampled(denoiser: Denoiser) -> None:
    images = sample(denoiser, seeds=range(3), solver=Heun(num_steps=3))
    assert images.shape == (3, 1, 8, 8)
    assert images.dtype == torch.uint8


@pytest.mark.parametrize("name", ["network", "unconditional network"])
def test_network_refuses_wrong_shapes(name: str, network: Make, linear: Make, inputs: tuple[Tensor, Tensor]) -> None:
    denoiser, (x, labels) = DENOISERS[name](network, linear), inputs
    with pytest.raises(UserError, match="takes images of shape"):
        denoiser(x[:, :, :4], torch.tensor(1.0), labels)
    with pytest.raises(UserError, match="sigma has 3 values for 4 images"):
        denoiser(x, torch.ones(3), labels)
    if denoiser.num_classes:
        with pytest.raises(UserError, match="labels have the shape"):
            denoiser(x, torch.tensor(1.0), labels[:, :2])
