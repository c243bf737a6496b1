"""Power-function averages against golden numbers, closed forms and brute force."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from autoguidance.ema import (
    MAX_EMA_STD,
    PowerEMA,
    combined_widths,
    exponent_to_std,
    power_ema_beta,
    profile_products,
    reconstruct,
    reconstruction_error,
    reconstruction_errors,
    solve_coefficients,
    std_to_exponent,
)
from autoguidance.errors import UserError


@pytest.fixture(scope="module")
def schedules(golden: Callable[[str], Path]) -> dict[str, Any]:
    return json.loads(golden("schedules.json").read_text())


def test_golden_exponents(schedules: dict[str, Any]) -> None:
    for row in schedules["std_to_exp"]:
        assert std_to_exponent(row["std"]) == pytest.approx(row["exp"], rel=1e-9)
        assert exponent_to_std(row["exp"]) == pytest.approx(row["std"], rel=1e-9)


def test_golden_beta(schedules: dict[str, Any]) -> None:
    for row in schedules["beta"]:
        assert power_ema_beta(row["std"], row["t_next"], row["t_delta"]) == pytest.approx(row["beta"], rel=1e-9)


def test_golden_correlations(schedules: dict[str, Any]) -> None:
    for row in schedules["correlation"]:
        assert profile_products([row["a"]], [row["b"]])[0, 0] == pytest.approx(row["value"], rel=1e-9)


def test_golden_posthoc_coefficients(schedules: dict[str, Any]) -> None:
    values = schedules["posthoc"]
    stored = list(zip(values["in_nimg"], values["in_std"], strict=True))
    wanted = [(values["out_nimg"], std) for std in values["out_std"]]
    coefficients = solve_coefficients(stored, wanted)
    np.testing.assert_allclose(coefficients, np.array(values["coefficients"]), rtol=0, atol=1e-9)
    np.testing.assert_allclose(coefficients.sum(axis=0), 1, rtol=0, atol=1e-12)


@given(st.floats(1e-3, MAX_EMA_STD))
def test_width_and_exponent_are_inverse(std: float) -> None:
    exponent = std_to_exponent(std)
    assert exponent >= -1e-6  # never weighs early weights more than late ones
    assert exponent_to_std(exponent) == pytest.approx(std, rel=1e-8)


@given(st.floats(1e-3, 0.25), st.floats(1.001, 4.0))
def test_wider_profiles_have_smaller_exponents(std: float, factor: float) -> None:
    if std * factor <= MAX_EMA_STD:
        assert std_to_exponent(std * factor) < std_to_exponent(std)


@pytest.mark.parametrize("std", [0.0, -0.1, 0.289, 1.0, math.nan, math.inf])
def test_width_out_of_range(std: float) -> None:
    with pytest.raises(UserError, match="out of range"):
        std_to_exponent(std)


@given(
    st.floats(0.02, 0.25),
    st.floats(0.02, 0.25),
    st.floats(0.2, 5.0),
)
def test_products_are_the_integrals(std_a: float, std_b: float, ratio: float) -> None:
    # p(tau) = (e + 1) tau^e / t^(e + 1) on [0, t]; midpoint rule over the shorter of the two
    t_a, t_b = 1.0, ratio
    e_a, e_b = std_to_exponent(std_a), std_to_exponent(std_b)
    end, count = min(t_a, t_b), 20_000
    tau = (np.arange(count) + 0.5) * (end / count)
    density = [(e + 1) * np.exp(e * np.log(tau / t)) / t for e, t in ((e_a, t_a), (e_b, t_b))]
    integral = float((density[0] * density[1]).sum() * end / count)
    product = profile_products([(t_a, std_a)], [(t_b, std_b)])[0, 0]
    assert product == pytest.approx(integral, rel=2e-3, abs=1e-300)
    assert product == pytest.approx(profile_products([(t_b, std_b)], [(t_a, std_a)])[0, 0], rel=1e-12)


class Walk(nn.Module):
    """A network whose weights walk at random and get slower, as weights do; with a buffer that changes too."""

    def __init__(self, size: int, seed: int) -> None:
        super().__init__()
        self._generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(size, generator=self._generator))
        self.register_buffer("count", torch.zeros(()))

    @torch.no_grad()
    def move(self, step: int) -> None:
        drift = 0.02 * torch.randn(self.weight.shape, generator=self._generator)
        self.weight += drift * 20 / (20 + step) - 0.002 * self.weight
        self.get_buffer("count").add_(1)


STEPS, BATCH = 2000, 4
STDS = (0.05, 0.1)


@pytest.fixture(scope="module")
def trajectory() -> tuple[torch.Tensor, dict[tuple[float, float], dict[str, torch.Tensor]]]:
    """Weights after every step [steps, size] in float64, and the averages stored at eight times."""
    net = Walk(size=64, seed=0)
    ema = PowerEMA(net, STDS)
    weights, stored = [], {}
    for step in range(1, STEPS + 1):
        net.move(step)
        ema.update(step * BATCH, BATCH)
        weights.append(net.weight.detach().double().clone())
        if step % (STEPS // 8) == 0:
            for std, state in ema.averages().items():
                stored[step * BATCH, std] = {name: value.detach().clone() for name, value in state.items()}
    return torch.stack(weights), stored


def brute_force(weights: torch.Tensor, std: float) -> torch.Tensor:
    """The average of all weights with the power-function profile, integrated exactly over each step.

    The weight after step k counts with the profile's mass between t_(k-1) and t_k: (t_k / t)^(e+1) - (t_(k-1) / t)^(e+1).
    """
    edges = (np.arange(len(weights) + 1) / len(weights)) ** (std_to_exponent(std) + 1)
    return torch.from_numpy(np.diff(edges)) @ weights


def spread(weights: torch.Tensor, value: torch.Tensor) -> float:
    """How far the average is from the last weights: the scale on which an error counts."""
    return float((value - weights[-1]).norm())


@pytest.mark.parametrize("std", STDS)
def test_tracked_average_is_the_brute_force_one(trajectory: Any, std: float) -> None:
    # PowerEMA's update telescopes into exactly these weights, so only float32 rounding is left: 2000 updates of up to
    # half an ulp each, most of which the later ones forget.
    weights, stored = trajectory
    expected = brute_force(weights, std)
    error = float((stored[STEPS * BATCH, std]["weight"].double() - expected).norm() / expected.norm())
    assert error < 2e-6, error


@pytest.mark.parametrize("std", [0.04, 0.06, 0.07, 0.085, 0.125, 0.15, 0.2])
def test_reconstruction_against_brute_force(
    trajectory: Any, std: float, record_property: Callable[[str, object], None]
) -> None:
    """The error in the weights is bounded by the error of the profile.

    reconstruction - truth = integral of (combination - wanted profile) * (theta(tau) - theta(t)), because both profiles
    integrate to 1. Cauchy-Schwarz: at most ||combination - wanted|| * ||theta - theta(t)||, with the L2 norms over time.
    """
    weights, stored = trajectory
    end = STEPS * BATCH
    result = reconstruct(
        {profile: (lambda state=state: state) for profile, state in stored.items()},
        end,
        [std],
        is_buffer=lambda name: name == "count",
    )[std]
    expected = brute_force(weights, std)
    error = float((result["weight"].double() - expected).norm())
    relative = error / float(expected.norm())
    record_property("relative_error", relative)
    record_property("share_of_the_distance_to_the_last_weights", error / spread(weights, expected))

    wanted = (float(end), std)
    profile_distance = reconstruction_error(list(stored), wanted) * math.sqrt(
        float(profile_products([wanted], [wanted])[0, 0])
    )
    travelled = math.sqrt(float(((weights - weights[-1]) ** 2).sum()) * BATCH)
    rounding = 1e-5 * float(expected.norm())  # large coefficients of opposite signs on float32 weights
    assert error <= profile_distance * travelled + rounding
    # Seen here: 0.1 % at 0.06 to 0.085, 0.4 % at 0.04 and 0.125, 6 % at 0.2; 0.3 to 8 % of the way to the last weights.
    assert error < 0.1 * spread(weights, expected), f"relative error {relative:.2e}"
    assert float(result["count"]) == STEPS  # a buffer is copied


@pytest.mark.parametrize("std", STDS)
@pytest.mark.parametrize("time", [STEPS * BATCH // 2, STEPS * BATCH])
def test_reconstruction_at_a_stored_profile_is_the_stored_one(trajectory: Any, std: float, time: int) -> None:
    _, stored = trajectory
    result = reconstruct({p: (lambda state=state: state) for p, state in stored.items()}, time, [std])[std]
    expected = stored[time, std]
    torch.testing.assert_close(result["weight"], expected["weight"], rtol=1e-5, atol=1e-6)
    assert reconstruction_error([p for p in stored if p[0] <= time], (time, std)) < 1e-5


def test_snapshots_after_the_wanted_time_do_not_matter(trajectory: Any) -> None:
    _, stored = trajectory
    time = STEPS * BATCH // 2
    early = {p: (lambda state=state: state) for p, state in stored.items() if p[0] <= time}
    every = {p: (lambda state=state: state) for p, state in stored.items()}
    # Of the same widths they could not help anyway; of another one they could, so only the rule keeps it out.
    every[STEPS * BATCH, 0.2] = lambda: {"weight": torch.full((64,), 1e6), "count": torch.zeros(())}
    torch.testing.assert_close(
        reconstruct(early, time, [0.07])[0.07], reconstruct(every, time, [0.07])[0.07], rtol=0, atol=0
    )


def test_time_that_is_not_stored_is_refused(trajectory: Any) -> None:
    _, stored = trajectory
    with pytest.raises(UserError, match=r"no snapshot at 7 images.*1000, 2000"):
        reconstruct({p: (lambda state=state: state) for p, state in stored.items()}, 7, [0.07])


def test_average_starts_as_a_copy_and_the_first_step_replaces_it() -> None:
    net = Walk(size=3, seed=1)
    ema = PowerEMA(net, [0.05])
    start = net.weight.detach().clone()
    net.move(1)
    torch.testing.assert_close(ema.averages()[0.05]["weight"], start, rtol=0, atol=0)
    ema.update(BATCH, BATCH)
    torch.testing.assert_close(ema.averages()[0.05]["weight"], net.weight.detach(), rtol=0, atol=0)


def test_state_round_trip() -> None:
    net = Walk(size=3, seed=1)
    ema = PowerEMA(net, STDS)
    for step in range(1, 10):
        net.move(step)
        ema.update(step * BATCH, BATCH)
    state = {name: value.clone() for name, value in ema.state_dict().items()}
    other = PowerEMA(Walk(size=3, seed=2), STDS)
    other.load_state_dict(state)
    assert all(torch.equal(value, state[name]) for name, value in other.state_dict().items())
    with pytest.raises(UserError, match="does not fit"):
        PowerEMA(Walk(size=3, seed=2), (0.05,)).load_state_dict(state)


PUBLISHED = [(step * 2**25, std) for step in range(1, 65) for std in STDS]
"""The profiles of a published run: every 32 Mi images, two widths."""

WIDE_RANGE = [round(0.01 + 0.005 * step, 3) for step in range(49)]  # 0.010, 0.015, ..., 0.250


@pytest.mark.parametrize(("stored", "change"), [(PUBLISHED[:40], 0.3), (PUBLISHED, 0.3), (PUBLISHED, 0.03)])
def test_streaming_is_the_in_memory_reconstruction(
    stored: list[Any], change: float, record_property: Callable[[str, object], None]
) -> None:
    """Algorithm 3 with every snapshot held in memory, in float64, against the streamed sums: 1e-6 for every width and weight.

    The snapshots share most of their weights, as those of one training do; so the large coefficients of narrow widths cancel, which is
    the case in which rounding counts most.
    """
    rng = np.random.default_rng(0)
    base, walk = rng.standard_normal(20_000), np.zeros(20_000)
    theta = []
    for _ in stored:
        walk = 0.97 * walk + change * 0.24 * rng.standard_normal(20_000)
        theta.append((base + walk).astype(np.float32))
    end = stored[-1][0]
    exponents = np.array([std_to_exponent(std) for _, std in stored])
    wanted = np.array([std_to_exponent(std) for std in WIDE_RANGE])
    times = np.array([time for time, _ in stored], dtype=np.float64)

    def products(t_b: np.ndarray, e_b: np.ndarray) -> np.ndarray:  # Eq. 151
        t_a, e_a = times[:, None], exponents[:, None]
        power = np.where(t_a < t_b, e_b, -e_a)
        return (e_a + 1) * (e_b + 1) * (t_a / t_b) ** power / ((e_a + e_b + 1) * np.maximum(t_a, t_b))

    X = np.linalg.solve(products(times, exponents), products(np.full(len(wanted), float(end)), wanted))
    expected = (X / X.sum(axis=0)).T @ np.stack(theta).astype(np.float64)
    states = {
        profile: (lambda value=value: {"weight": torch.from_numpy(value)})
        for profile, value in zip(stored, theta, strict=True)
    }
    result = reconstruct(states, end, WIDE_RANGE)
    errors = []
    for std, truth in zip(WIDE_RANGE, expected, strict=True):
        difference = result[std]["weight"].double().numpy() - truth
        errors.append(float(np.linalg.norm(difference) / np.linalg.norm(truth)))
    record_property("largest_relative_error", max(errors))
    assert max(errors) < 1e-6, dict(zip(WIDE_RANGE, errors, strict=True))


@given(st.lists(st.floats(0.02, 0.2), min_size=1, max_size=3, unique=True), st.integers(2, 12))
def test_a_stored_profile_combines_to_its_own_width(stds: list[float], steps: int) -> None:
    stored = [(step * 1000, std) for step in range(1, steps + 1) for std in sorted(stds)]
    X = np.zeros((len(stored), len(stored)))
    np.fill_diagonal(X, 1.0)
    expected = [std * time / (steps * 1000) for time, std in stored]
    np.testing.assert_allclose(combined_widths(stored, steps * 1000, X), expected, rtol=1e-9)


def test_error_and_width_of_a_combination_are_those_of_its_density() -> None:
    """The combined density on a fine grid: its L2 distance to the wanted one and its standard deviation."""
    stored = [(step, std) for step in range(1, 9) for std in STDS]
    count = 200_000
    tau = (np.arange(count) + 0.5) / count

    def density(time: float, std: float) -> np.ndarray:
        exponent = std_to_exponent(std)
        inside = np.minimum(tau * 8 / time, 1.0)
        return np.where(tau * 8 <= time, (exponent + 1) * inside**exponent * 8 / time, 0.0)

    columns = np.stack([density(*profile) for profile in stored])
    for std in (0.04, 0.15, 0.25):
        X = solve_coefficients(stored, [(8, std)])
        combination = X[:, 0] @ columns
        wanted = density(8, std)
        error = math.sqrt(float(((combination - wanted) ** 2).mean() / (wanted**2).mean()))
        assert reconstruction_errors(stored, [(8, std)], X)[0] == pytest.approx(error, rel=1e-2)
        mean = float((combination * tau).mean())
        deviation = math.sqrt(float((combination * (tau - mean) ** 2).mean()))
        assert combined_widths(stored, 8, X)[0] == pytest.approx(deviation, rel=1e-3)


def test_a_combination_that_extrapolates_has_no_width() -> None:
    stored = [(step, std) for step in range(1, 5) for std in STDS]
    X = solve_coefficients(stored, [(4, 0.01), (4, 0.1)])
    widths = combined_widths(stored, 4, X)
    assert math.isnan(widths[0])
    assert widths[1] == pytest.approx(0.1)
