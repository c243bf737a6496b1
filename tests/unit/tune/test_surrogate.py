"""The Gaussian process: exact where it must be, better than its data where it can be, and calibrated on functions drawn from
its own prior."""

import math

import numpy as np
import pytest

from autoguidance.tune.grid import Places
from autoguidance.tune.surrogate import Surrogate

COUNTS = (128, 384, 1152)


def at(x: np.ndarray, categories: np.ndarray | None = None, strengths: np.ndarray | None = None) -> Places:
    """Places of one category, unless told, at full strength."""
    n = len(x)
    return Places(
        x, np.zeros(n, int) if categories is None else categories, np.ones(n) if strengths is None else strengths
    )


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
    return x, Surrogate(at(x), r, np.exp(y), COUNTS)


def test_it_interpolates_exact_measurements() -> None:
    x, surrogate = fitted(30, 0.0, 0)
    mean, deviation = surrogate.predict(at(x))
    assert np.abs(mean - bowl(x)).max() < 0.01
    assert deviation.max() < 0.05
    new = np.random.default_rng(1).uniform(-0.8, 0.8, (200, 2))
    mean, deviation = surrogate.predict(at(new))
    assert np.abs(mean - bowl(new)).max() < 0.1


def test_it_averages_noise_away() -> None:
    x, surrogate = fitted(40, 0.1, 2)
    mean, _ = surrogate.predict(at(x))
    assert np.sqrt(np.mean((mean - bowl(x)) ** 2)) < 0.07  # single measurements are 0.1 off
    assert 0.05 < surrogate.noise < 0.2


def test_the_truth_lies_within_two_deviations_about_as_often_as_it_should() -> None:
    inside = []
    for seed in range(8):
        _, surrogate = fitted(15, 0.05, 10 + seed)
        new = np.random.default_rng(seed).uniform(-1, 1, (100, 2))
        mean, deviation = surrogate.predict(at(new))
        inside.append(np.mean(np.abs(mean - bowl(new)) < 2 * deviation))
    assert np.mean(inside) > 0.85


def test_measurements_on_few_images_help_and_their_bias_does_not_show() -> None:
    few = np.zeros(40, int)
    few[:4] = 2  # four settings at the full count, 36 on a ninth of it, whose distances are e times as large
    _, surrogate = fitted(40, 0.02, 3, few, bias=(1.0, 0.5, 0.0))
    new = np.random.default_rng(4).uniform(-0.8, 0.8, (200, 2))
    mean, _ = surrogate.predict(at(new))
    assert np.corrcoef(mean, bowl(new))[0, 1] > 0.98
    assert abs(np.mean(mean - bowl(new))) < 0.15  # of the full count, not of the lower rung (1.0 more)


def test_categories_share_what_they_have_in_common() -> None:
    generator = np.random.default_rng(5)
    x = generator.uniform(-1, 1, (30, 2))
    category = np.repeat([0, 1], 15)
    y = bowl(x) + 0.3 * category
    surrogate = Surrogate(at(x, category), np.full(30, 2), np.exp(y), COUNTS)
    new = generator.uniform(-0.7, 0.7, (100, 2))
    for which in (0, 1):
        mean, _ = surrogate.predict(at(new, np.full(100, which)))
        assert np.abs(mean - bowl(new) - 0.3 * which).mean() < 0.1


def test_without_guidance_it_does_not_matter_whose_the_guide_is() -> None:
    # Two runs, far apart at full strength: what was measured of one tells little of the other, where guidance fades nearly all.
    generator = np.random.default_rng(8)
    x = generator.uniform(-1, 1, (20, 2))
    strengths = np.repeat([0.02, 1.0], 10)
    category = np.tile([0, 1], 10)
    y = bowl(x) + strengths * category * np.sin(9 * x[:, 0])
    surrogate = Surrogate(at(x, category, strengths), np.full(20, 2), np.exp(y), COUNTS)
    there = x[:1]  # measured for category 0 with hardly any guidance
    _, same = surrogate.predict(at(there, np.array([0]), np.array([0.02])))
    _, weak = surrogate.predict(at(there, np.array([1]), np.array([0.02])))
    _, strong = surrogate.predict(at(there, np.array([1]), np.array([1.0])))
    assert weak[0] < 1.1 * same[0]
    assert strong[0] > 1.5 * same[0]


def test_expecting_keeps_the_means_and_lowers_the_uncertainty_there() -> None:
    _, surrogate = fitted(12, 0.02, 6)
    there = np.array([[0.9, -0.9]])
    believer = surrogate.expecting(at(there), np.array([2]))
    new = np.random.default_rng(7).uniform(-1, 1, (50, 2))
    before, after = surrogate.predict(at(new)), believer.predict(at(new))
    assert np.abs(before[0] - after[0]).max() < 1e-6
    assert (after[1] <= before[1] + 1e-9).all()
    assert believer.predict(at(there))[1] < 0.5 * surrogate.predict(at(there))[1]
    assert surrogate.expecting(at(np.zeros((0, 2))), np.zeros(0, int)) is surrogate


@pytest.mark.parametrize("values", [[], [1.0, math.inf], [1.0, 0.0], [math.nan]])
def test_distances_that_are_none_are_refused(values) -> None:
    n = len(values)
    with pytest.raises(ValueError, match="positive"):
        Surrogate(at(np.zeros((n, 2))), np.zeros(n, int), np.array(values), COUNTS)
