"""The kernel distance against sums written out, and against what it estimates."""

import numpy as np
import pytest
from shared_work import shared

from autoguidance.errors import UserError
from autoguidance.evaluate.kid import KidSettings, kernel_distance


def features(num, dimensions=16, seed=0, shift=0.0, scale=1.0):
    drawn = np.random.default_rng(seed).normal(size=(num, dimensions))
    return (shift + scale * np.maximum(drawn, 0)).astype(np.float32)


def kernel(a, b):
    return (float(np.dot(a.astype(np.float64), b.astype(np.float64))) / len(a) + 1) ** 3


def written_out(x, y):
    """The unbiased estimate as in the paper, one pair at a time."""
    m = len(x)
    within = sum(kernel(s[i], s[j]) for s in (x, y) for i in range(m) for j in range(m) if i != j)
    across = sum(kernel(x[i], y[j]) for i in range(m) for j in range(m))
    return within / (m * (m - 1)) - 2 * across / m**2


def test_whole_sets_are_the_sums_written_out():
    x, y = features(30), features(30, seed=1, shift=0.1)
    found = kernel_distance(x, y)
    assert found.mean == pytest.approx(written_out(x, y), abs=1e-12)
    assert (found.spread, found.subset_size) == (0.0, 30)


def test_mean_and_spread_over_the_subsets_that_torch_fidelity_draws():
    x, y = features(50), features(40, seed=1, shift=0.2)
    draw = np.random.RandomState(2020)
    values = []
    for _ in range(7):
        first, second = draw.choice(50, 12, replace=False), draw.choice(40, 12, replace=False)
        values.append(written_out(x[first], y[second]))
    found = kernel_distance(x, y, KidSettings(subsets=7, subset_size=12))
    assert found.mean == pytest.approx(np.mean(values), abs=1e-12)
    assert found.spread == pytest.approx(np.std(values), abs=1e-12)


def test_it_has_no_bias():
    # Two samples of one distribution: the mean over many pairs is zero within its standard error, and negative at times.
    values = np.array(
        [kernel_distance(features(20, seed=2 * s), features(20, seed=2 * s + 1)).mean for s in range(400)]
    )
    assert abs(values.mean()) < 3 * values.std() / len(values) ** 0.5
    assert (values < 0).mean() > 0.2
    assert kernel_distance(features(500), features(500, seed=1, shift=0.3)).mean > 5 * values.std() / 5


def test_float64_where_float32_would_lose_it():
    # Features near 40: the kernel is about 4e9, its float32 spacing 256, and the distance far below that.
    x, y = (np.float32(40) + features(200, seed=s, scale=1e-3) for s in (0, 1))
    expected = written_out(x, y)
    assert kernel_distance(x, y).mean == pytest.approx(expected, abs=1e-4 * abs(expected) + 1e-5)


@pytest.mark.parametrize("size", [2, 3])
def test_any_number_of_processes(size):
    x, y = features(60), features(70, seed=1, shift=0.1)
    settings = KidSettings(subsets=10, subset_size=25)
    alone = kernel_distance(x, y, settings)
    assert shared(size, lambda processes: kernel_distance(x, y, settings, processes=processes)) == [alone] * size


def test_what_cannot_be_is_refused():
    with pytest.raises(UserError, match="do not compare"):
        kernel_distance(features(9), features(9, dimensions=8))
    with pytest.raises(UserError, match="at least 2 of each"):
        kernel_distance(features(9), features(1))
    with pytest.raises(UserError, match="at least 1 subset of 2"):
        KidSettings(subset_size=1)
