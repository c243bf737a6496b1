"""Seeds and solvers against the reference program, and solvers against closed-form solutions.

For data N(0, sd^2) the ideal denoiser is D(x; s) = sd^2 / (s^2 + sd^2) x, the ODE is dx/ds = s / (s^2 + sd^2) x, and so
x(s) = x(S) sqrt((s^2 + sd^2) / (S^2 + sd^2)).
"""

import itertools
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from autoguidance.guidance import Autoguidance
from autoguidance.models import Precond
from autoguidance.sample import Euler, Heun, SeededNoise, Solver

Net = Callable[[str], tuple[Precond, dict[str, Tensor]]]
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def start(golden: Callable[[str], Path]) -> tuple[Tensor, Tensor]:
    """Noise and one-hot labels of the golden seeds."""
    seeds = load_file(golden("seeds.safetensors"))
    return seeds["noise"], torch.nn.functional.one_hot(seeds["class_idx"], 10).float()


def relative_error(value: Tensor, expected: Tensor) -> float:
    assert value.shape == expected.shape
    return float((value - expected).abs().max() / expected.abs().max())


def test_seeds_are_bitwise_the_references(golden: Callable[[str], Path]) -> None:
    expected = load_file(golden("seeds.safetensors"))
    noise = SeededNoise(expected["seeds"].tolist())
    assert torch.equal(noise.randn((3, 16, 16)), expected["noise"])
    assert torch.equal(noise.randint(10), expected["class_idx"])


def test_seeds_count_modulo_two_to_the_32() -> None:
    assert torch.equal(SeededNoise([7]).randn((4,)), SeededNoise([7 + 2**32]).randn((4,)))
    # The CPU's generator drops the upper half by itself; a GPU's would not.
    assert SeededNoise([7 + 2**32])._generators[0].initial_seed() == 7


@pytest.mark.parametrize(
    ("key", "weight", "solver"),
    [
        ("unguided", 1.0, Heun(num_steps=8)),
        ("autoguidance_w2", 2.0, Heun(num_steps=8)),
        ("autoguidance_w2_f64", 2.0, Heun(num_steps=8, dtype=torch.float64)),
        ("custom_schedule", 1.5, Heun(num_steps=5, sigma_min=0.01, sigma_max=10, rho=3)),
    ],
)
def test_deterministic_run(
    key: str,
    weight: float,
    solver: Solver,
    golden: Callable[[str], Path],
    golden_net: Net,
    start: tuple[Tensor, Tensor],
) -> None:
    expected = load_file(golden("sampler.safetensors"))[key]
    (main, _), (guide, _) = golden_net("cond"), golden_net("guide")
    with torch.no_grad():
        result = solver.integrate(Autoguidance(main, guide, weight), *start)
    assert result.dtype == expected.dtype
    assert relative_error(result, expected) <= TOLERANCE


@pytest.mark.parametrize(("key", "churn"), [("churn", 10.0), ("churn2", 2.0)])
def test_churn(
    key: str,
    churn: float,
    golden: Callable[[str], Path],
    golden_net: Net,
    start: tuple[Tensor, Tensor],
) -> None:
    values = load_file(golden("sampler.safetensors"))
    (main, _), (guide, _) = golden_net("cond"), golden_net("guide")
    solver = Heun(num_steps=8, churn=churn, churn_min=0.05, churn_max=20, churn_noise=1.007)
    noises = list(values[f"{key}_noise"])  # drawn only where churn acts: as many as there are, in order
    with torch.no_grad():
        result = solver.integrate(Autoguidance(main, guide, 1.7), *start, randn=lambda: noises.pop(0))
    assert not noises
    assert relative_error(result, values[key]) <= TOLERANCE


class Gaussian:
    """The ideal denoiser of data N(0, sigma_data^2)."""

    img_resolution, img_channels, num_classes = 1, 1, 0

    def __init__(self, sigma_data: float = 0.5) -> None:
        self.sigma_data = sigma_data

    def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        # float64 inside, so that the observed order is not drowned in rounding
        s = sigma.double()
        return x.double() * (self.sigma_data**2 / (s**2 + self.sigma_data**2))

    def exact(self, x: float, start: float, end: float) -> float:
        return x * math.sqrt((end**2 + self.sigma_data**2) / (start**2 + self.sigma_data**2))


@pytest.mark.parametrize(("kind", "order"), [(Euler, 1.0), (Heun, 2.0)])
def test_observed_order(kind: type[Solver], order: float) -> None:
    # The last step goes to sigma 0 by Euler in every solver; its length is the fixed sigma_min, so the global error at
    # sigma_min, which the callback sees, is what has an order.
    denoiser = Gaussian()
    steps = (32, 64, 128, 256)
    errors = []
    for num in steps:
        solver = kind(num_steps=num + 1, sigma_min=0.05, sigma_max=5.0, dtype=torch.float64)
        seen: list[tuple[float, float]] = []
        solver.integrate(
            denoiser,
            torch.ones(1, 1, 1, 1),
            callback=lambda index, sigma, x, seen=seen: seen.append((sigma, float(x))),
        )
        sigma, x = seen[-2]
        assert sigma == pytest.approx(0.05)
        errors.append(abs(x - denoiser.exact(5.0, 5.0, 0.05)))
    observed = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert errors == sorted(errors, reverse=True)
    assert observed[-1] == pytest.approx(order, abs=0.1), (errors, observed)


@pytest.mark.parametrize("kind", [Euler, Heun])
def test_last_step_ends_at_the_denoised_image(kind: type[Solver]) -> None:
    # One step: x = D(sigma_max * noise; sigma_max), because Euler from s to 0 gives x - s (x - D) / s = D.
    noise = torch.randn(4, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    solver = kind(num_steps=1, sigma_max=3.0)
    result = solver.integrate(Gaussian(), noise)
    torch.testing.assert_close(result, noise * 3.0 * 0.25 / (9.0 + 0.25), rtol=1e-5, atol=1e-7)


def test_churn_keeps_the_variance_of_a_gaussian() -> None:
    # Noise is added and removed again by an ideal denoiser, so the samples stay N(0, sd^2). With 40,000 values the
    # standard error of a variance is sqrt(2 / 40000) = 0.7 %; four of them, and 1 % for the finite steps.
    count, denoiser = 40_000, Gaussian()
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(count, 1, 1, 1, generator=generator, dtype=torch.float64)
    calls = 0

    def randn() -> Tensor:
        nonlocal calls
        calls += 1
        return torch.randn(count, 1, 1, 1, generator=generator, dtype=torch.float64)

    solver = Heun(num_steps=128, churn=40, dtype=torch.float64)
    result = solver.integrate(denoiser, noise, randn=randn)
    assert calls == 128
    assert float(result.var()) == pytest.approx(denoiser.sigma_data**2, rel=0.04)
    # And churn did something: without it the samples are a fixed multiple of the noise.
    correlation = torch.corrcoef(torch.stack([result.flatten(), noise.flatten()]))[0, 1]
    assert abs(float(correlation)) < 0.9


def test_churn_acts_only_between_its_limits() -> None:
    calls = 0

    def randn() -> Tensor:
        nonlocal calls
        calls += 1
        return torch.zeros(1, 1, 1, 1)

    solver = Heun(num_steps=20, churn=5, churn_min=0.1, churn_max=10)
    sigmas = []
    solver.integrate(
        Gaussian(), torch.ones(1, 1, 1, 1), randn=randn, callback=lambda index, sigma, x: sigmas.append(sigma)
    )
    assert calls == sum(0.1 <= sigma <= 10 for sigma in sigmas[:-1]) > 0
