"""The Gaussian process: exact where it must be, better than its data where it can be, and calibrated on functions drawn from
its own prior."""

import math

import numpy as np
import pytest

from autoguidance.tune.surrogate import Surrogate

COUNTS = (128, 384, 1152)


def bowl(x: np.ndarray) -> np.ndarray:
    """log distance of a smooth valley."""
    return -1 + 1.5 * (x[:, 0] - 0.4) ** 2 + 0.5 * (x[:, 1] + 0.2) ** 2 + 0.6 * x[:, 0] * x[:, 1]


def fitted(n: int, noise: float, seed: int, rungs: np.ndarray | None = None, bias: tuple[float, ...] = (0, 0, 0)):
    generator = np.random.default_rng(seed)
    x = generator.uniform(-1, 1, (n, 2))
    r = np.full(n, 2) if rungs is None else rungs
    y = (
        bowl(x)
        + np.asarray(bias)[r]
        + noise * np.sqrt(COUNTS[-1] / np.asarray(COUNTS)[r]) * generator.standard_normal(n)
    )
    return x, Surrogate(x, np.zeros(n, int), r, np.exp(y), COUNTS)


def test_it_interpolates_exact_measurements() -> None:
    x, surrogate = fitted(30, 0.0, 0)
    mean, deviation = surrogate.predict(x, np.zeros(len(x), int))
    assert np.abs(mean - bowl(x)).max() < 0.01
    assert deviation.max() < 0.05
    new = np.random.default_rng(1).uniform(-0.8, 0.8, (200, 2))
    mean, deviation = surrogate.predict(new, np.zeros(200, int))
    assert np.abs(mean - bowl(new)).max() < 0.1


def test_it_averages_noise_away() -> None:
    x, surrogate = fitted(40, 0.1, 2)
    mean, _ = surrogate.predict(x, np.zeros(len(x), int))
    assert np.sqrt(np.mean((mean - bowl(x)) ** 2)) < 0.07  # single measurements are 0.1 off
    assert 0.05 < surrogate.noise < 0.2


def test_the_truth_lies_within_two_deviations_about_as_often_as_it_should() -> None:
    inside = []
    for seed in range(8):
        _, surrogate = fitted(15, 0.05, 10 + seed)
        new = np.random.default_rng(seed).uniform(-1, 1, (100, 2))
        mean, deviation = surrogate.predict(new, np.zeros(100, int))
        inside.append(np.mean(np.abs(mean - bowl(new)) < 2 * deviation))
    assert np.mean(inside) > 0.85


def test_measurements_on_few_images_help_and_their_bias_does_not_show() -> None:
    few = np.zeros(40, int)
    few[:4] = 2  # four settings at the full count, 36 on a ninth of it, whose distances are e times as large
    _, surrogate = fitted(40, 0.02, 3, few, bias=(1.0, 0.5, 0.0))
    new = np.random.default_rng(4).uniform(-0.8, 0.8, (200, 2))
    mean, _ = surrogate.predict(new, np.zeros(200, int))
    assert np.corrcoef(mean, bowl(new))[0, 1] > 0.98
    assert abs(np.mean(mean - bowl(new))) < 0.15  # of the full count, not of the lower rung (1.0 more)


def test_categories_share_what_they_have_in_common() -> None:
    generator = np.random.default_rng(5)
    x = generator.uniform(-1, 1, (30, 2))
    category = np.repeat([0, 1], 15)
    y = bowl(x) + 0.3 * category
    surrogate = Surrogate(x, category, np.full(30, 2), np.exp(y), COUNTS)
    new = generator.uniform(-0.7, 0.7, (100, 2))
    for which in (0, 1):
        mean, _ = surrogate.predict(new, np.full(100, which))
        assert np.abs(mean - bowl(new) - 0.3 * which).mean() < 0.1


def test_expecting_keeps_the_means_and_lowers_the_uncertainty_there() -> None:
    _, surrogate = fitted(12, 0.02, 6)
    there = np.array([[0.9, -0.9]])
    believer = surrogate.expecting(there, np.zeros(1, int), np.array([2]))
    new = np.random.default_rng(7).uniform(-1, 1, (50, 2))
    before, after = surrogate.predict(new, np.zeros(50, int)), believer.predict(new, np.zeros(50, int))
    assert np.abs(before[0] - after[0]).max() < 1e-6
    assert (after[1] <= before[1] + 1e-9).all()
    assert believer.predict(there, np.zeros(1, int))[1] < 0.5 * surrogate.predict(there, np.zeros(1, int))[1]
    assert surrogate.expecting(np.zeros((0, 2)), np.zeros(0, int), np.zeros(0, int)) is surrogate


@pytest.mark.parametrize("values", [[], [1.0, math.inf], [1.0, 0.0], [math.nan]])
def test_distances_that_are_none_are_refused(values) -> None:
    n = len(values)
    with pytest.raises(ValueError, match="positive"):
        Surrogate(np.zeros((n, 2)), np.zeros(n, int), np.zeros(n, int), np.array(values), COUNTS)
