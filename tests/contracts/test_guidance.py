"""What guidance computes, when it must not act, and which models it refuses."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from autoguidance.errors import UserError
from autoguidance.guidance import (
    Autoguidance,
    ClassifierFree,
    Guided,
    MultiGuidance,
    NaiveTruncation,
    mixing_weights,
)

Make = Callable[..., Any]

# main, guide, weight, interval -> guided
METHODS: dict[str, Callable[..., Guided]] = {
    "autoguidance": lambda main, guide, w, interval: Autoguidance(main, guide, w, interval),
    "cfg": lambda main, guide, w, interval: ClassifierFree(main, guide, w, interval),
    "several": lambda main, guide, w, interval: MultiGuidance(main, [(guide, w), (guide, w)], interval),
    "truncation": lambda main, guide, w, interval: NaiveTruncation(main, w, interval),
}


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def guide(method: str, linear: Make) -> Any:
    return linear(0.3, num_classes=0 if method == "cfg" else 3)


def test_weight_one_is_main_bitwise_and_calls_no_guide(
    method: str, guide: Any, network: Make, inputs: tuple[Tensor, Tensor]
) -> None:
    x, labels = inputs
    main = network(0)
    guided = METHODS[method](main, guide, 1.0, None)
    for sigma in (torch.tensor(1.0), torch.tensor([0.1, 1.0, 2.0, 50.0])):
        assert torch.equal(guided(x, sigma, labels), main(x, sigma, labels))
    assert guided.is_off()
    assert guide.calls == []


@pytest.mark.parametrize("sigma", [0.01, 0.5, 2.0001, 80.0])  # 0.5 is the open end of (0.5, 2]
def test_outside_the_interval_is_main_bitwise_and_calls_no_guide(
    method: str, guide: Any, network: Make, inputs: tuple[Tensor, Tensor], sigma: float
) -> None:
    x, labels = inputs
    main = network(0)
    guided = METHODS[method](main, guide, 3.0, (0.5, 2.0))
    for value in (torch.tensor(sigma), torch.full((4,), sigma)):
        assert torch.equal(guided(x, value, labels), main(x, value, labels))
    assert guide.calls == []


@pytest.mark.parametrize("sigma", [0.5001, 1.0, 2.0])  # 2.0 is the closed end
def test_inside_the_interval_it_is_as_without(
    method: str, guide: Any, network: Make, inputs: tuple[Tensor, Tensor], sigma: float
) -> None:
    x, labels = inputs
    main = network(0)
    limited, always = (METHODS[method](main, guide, 3.0, interval) for interval in ((0.5, 2.0), None))
    for value in (torch.tensor(sigma), torch.full((4,), sigma)):
        assert torch.equal(limited(x, value, labels), always(x, value, labels))
    assert not torch.equal(limited(x, torch.tensor(sigma), labels), main(x, torch.tensor(sigma), labels))


def test_interval_is_judged_per_image(method: str, guide: Any, network: Make, inputs: tuple[Tensor, Tensor]) -> None:
    x, labels = inputs
    main = network(0)
    limited, always = (METHODS[method](main, guide, 3.0, interval) for interval in ((0.5, 2.0), None))
    sigma = torch.tensor([0.5, 2.0, 1.0, 3.0])
    expected = main(x, sigma, labels).clone()
    inside = torch.tensor([False, True, True, False])
    expected[inside] = always(x, sigma, labels)[inside]
    guide.calls.clear()
    torch.testing.assert_close(limited(x, sigma, labels), expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(limited(x, sigma, labels)[~inside], main(x, sigma, labels)[~inside])
    for count, seen, given in guide.calls:  # the guide sees the images inside, with their own sigma and labels
        assert count == 2
        assert torch.equal(seen, sigma[inside])
        assert given is None or torch.equal(given, labels[inside])


def test_an_unbounded_interval_is_no_interval(
    method: str, guide: Any, network: Make, inputs: tuple[Tensor, Tensor]
) -> None:
    x, labels = inputs
    main, sigma = network(0), torch.tensor([0.001, 1.0, 2.0, 80.0])
    limited, always = (METHODS[method](main, guide, 3.0, interval) for interval in ((0.0, math.inf), None))
    assert torch.equal(limited(x, sigma, labels), always(x, sigma, labels))


@pytest.mark.parametrize("weight", [0.0, 0.4, 1.25, 2.0, 3.5])
def test_equation_3(network: Make, inputs: tuple[Tensor, Tensor], weight: float) -> None:
    x, labels = inputs
    main, guide, sigma = network(0), network(1), torch.tensor(0.8)
    d1, d0 = main(x, sigma, labels), guide(x, sigma, labels)
    guided = Autoguidance(main, guide, weight)(x, sigma, labels)
    torch.testing.assert_close(guided, d0 + weight * (d1 - d0), rtol=1e-5, atol=1e-5)
    if weight == 0:
        assert torch.equal(guided, d0)


def test_equation_6(network: Make, inputs: tuple[Tensor, Tensor]) -> None:
    x, labels = inputs
    main, bad, unconditional = network(0), network(1), network(2, label_dim=0)
    sigma = torch.tensor(0.8)
    dm, dc, du = main(x, sigma, labels), bad(x, sigma, labels), unconditional(x, sigma)
    guided = MultiGuidance(main, [(bad, 1.8), (unconditional, 1.3)])(x, sigma, labels)
    torch.testing.assert_close(guided, dm + 0.8 * (dm - dc) + 0.3 * (dm - du), rtol=1e-5, atol=1e-5)


def test_one_of_several_guides_at_weight_one_is_not_called(linear: Make, inputs: tuple[Tensor, Tensor]) -> None:
    x, labels = inputs
    main, used, unused = linear(0.9), linear(0.5), linear(0.3)
    MultiGuidance(main, [(used, 2.0), (unused, 1.0)])(x, torch.tensor(1.0), labels)
    assert (len(main.calls), len(used.calls), len(unused.calls)) == (1, 1, 0)


def test_multi_guidance_gives_labels_to_conditional_guides_only(linear: Make, inputs: tuple[Tensor, Tensor]) -> None:
    x, labels = inputs
    conditional, unconditional = linear(0.5), linear(0.3, num_classes=0)
    MultiGuidance(linear(0.9), [(conditional, 2.0), (unconditional, 1.5)])(x, torch.tensor(1.0), labels)
    assert conditional.calls[0][2] is labels
    assert unconditional.calls[0][2] is None


@pytest.mark.parametrize("weight", [0.5, 2.0])
def test_one_guide_of_several_is_autoguidance(network: Make, inputs: tuple[Tensor, Tensor], weight: float) -> None:
    x, labels = inputs
    main, guide, sigma = network(0), network(1), torch.tensor(0.8)
    torch.testing.assert_close(
        MultiGuidance(main, [(guide, weight)])(x, sigma, labels),
        Autoguidance(main, guide, weight)(x, sigma, labels),
        rtol=1e-5,
        atol=1e-5,
    )


def test_mixing_ends_at_cfg_and_at_autoguidance(network: Make, inputs: tuple[Tensor, Tensor]) -> None:
    x, labels = inputs
    main, bad, unconditional = network(0), network(1), network(2, label_dim=0)
    sigma = torch.tensor(0.8)

    def mixed(alpha: float) -> Tensor:
        w_unconditional, w_bad = mixing_weights(2.0, alpha)
        return MultiGuidance(main, [(unconditional, w_unconditional), (bad, w_bad)])(x, sigma, labels)

    tolerance = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(mixed(0.0), ClassifierFree(main, unconditional, 2.0)(x, sigma, labels), **tolerance)
    torch.testing.assert_close(mixed(1.0), Autoguidance(main, bad, 2.0)(x, sigma, labels), **tolerance)
    assert mixing_weights(2.0, 0.25) == pytest.approx((1.75, 1.25))
    for alpha in (-0.1, 1.1, math.nan):
        with pytest.raises(UserError, match="alpha"):
            mixing_weights(2.0, alpha)


def test_cfg_against_the_formula(network: Make, inputs: tuple[Tensor, Tensor]) -> None:
    x, labels = inputs
    main, unconditional, sigma = network(0), network(2, label_dim=0), torch.tensor(0.8)
    d1 = main(x, sigma, labels)
    for model, d0 in ((unconditional, unconditional(x, sigma)), (None, main(x, sigma, None))):
        guided = ClassifierFree(main, model, 1.7)(x, sigma, labels)
        torch.testing.assert_close(guided, d0 + 1.7 * (d1 - d0), rtol=1e-5, atol=1e-5)


def test_truncation_multiplies_the_score(network: Make, inputs: tuple[Tensor, Tensor]) -> None:
    x, labels = inputs
    main, sigma = network(0), torch.tensor(0.8)
    score = (main(x, sigma, labels) - x) / sigma**2
    truncated = (NaiveTruncation(main, 1.4)(x, sigma, labels) - x) / sigma**2
    torch.testing.assert_close(truncated, 1.4 * score, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "attributes"),
    [
        ("resolution", {"img_resolution": 16}),
        ("channels", {"img_channels": 3}),
        ("sigma_data", {"sigma_data": 0.7}),
        ("encoder", {"encoder": {"name": "unshuffle", "factor": 4}}),
        ("number of classes", {"num_classes": 4}),
        ("number of classes", {"num_classes": 0}),
        ("class names", {"class_names": ("a", "b", "d")}),
    ],
)
def test_a_pair_that_does_not_fit_is_refused(linear: Make, name: str, attributes: dict[str, Any]) -> None:
    main, guide = linear(0.9, class_names=("a", "b", "c")), linear(0.5, **attributes)
    with pytest.raises(UserError, match=f"do not fit: {name} .* against .*; choose") as caught:
        Autoguidance(main, guide, 2.0)
    assert "\n" not in str(caught.value)
    if name in ("resolution", "channels", "sigma_data", "encoder"):
        with pytest.raises(UserError, match=f"do not fit: {name}"):
            ClassifierFree(main, linear(0.5, **{**attributes, "num_classes": 0}), 2.0)
    if attributes != {"num_classes": 0}:
        with pytest.raises(UserError, match=f"do not fit: {name}"):
            MultiGuidance(main, [(linear(0.6), 1.5), (guide, 2.0)])


def test_plain_pixels_need_not_be_named(linear: Make) -> None:
    Autoguidance(linear(0.9, encoder=None), linear(0.5), 2.0)


def test_cfg_needs_classes_and_an_unconditional_guide(linear: Make) -> None:
    with pytest.raises(UserError, match="class-conditional"):
        ClassifierFree(linear(0.9, num_classes=0), None, 2.0)
    with pytest.raises(UserError, match="has 3 classes"):
        ClassifierFree(linear(0.9), linear(0.5), 2.0)


def test_multi_guidance_needs_a_guide(linear: Make) -> None:
    with pytest.raises(UserError, match="at least one guide"):
        MultiGuidance(linear(0.9), [])


@pytest.mark.parametrize("weight", [math.nan, math.inf, -math.inf, -0.1, 1e6])
def test_weights_out_of_range_are_refused(method: str, guide: Any, linear: Make, weight: float) -> None:
    if method == "truncation" and weight == 1e6:
        weight = 0.0
    with pytest.raises(UserError, match="out of range; choose"):
        METHODS[method](linear(0.9), guide, weight, None)


@pytest.mark.parametrize(
    "interval", [(2.0, 0.5), (1.0, 1.0), (-1.0, 1.0), (math.nan, 1.0), (0.0, math.nan), (math.inf, math.inf)]
)
def test_intervals_out_of_range_are_refused(
    method: str, guide: Any, linear: Make, interval: tuple[float, float]
) -> None:
    with pytest.raises(UserError, match="interval"):
        METHODS[method](linear(0.9), guide, 2.0, interval)


def test_gradients_flow_through_guidance(network: Make, inputs: tuple[Tensor, Tensor]) -> None:
    x, labels = inputs[0].clone().requires_grad_(True), inputs[1]
    guided = Autoguidance(network(0), network(1), 2.0, interval=(0.5, 2.0))
    guided(x, torch.tensor([0.1, 1.0, 1.5, 9.0]), labels).sum().backward()
    assert x.grad is not None
    assert (x.grad.abs().amax(dim=(1, 2, 3)) > 0).all()
