"""Precision, recall, density and coverage against brute force over all pairs."""

import numpy as np
import pytest
import torch
from shared_work import shared

from autoguidance.errors import UserError
from autoguidance.evaluate.manifold import ManifoldFigures, manifold_figures, neighbourhoods


def brute_force(generated, real):
    """The definitions of the two papers, all distances at once in float64."""
    x, y = generated.astype(np.float64), real.astype(np.float64)

    def distances2(a, b):
        return np.stack([np.square(row - b).sum(axis=1) for row in a])

    def radius2(rows, k):
        every = distances2(rows, rows)
        np.fill_diagonal(every, np.inf)
        return np.sort(every, axis=1)[:, k - 1]

    between = distances2(y, x)  # real, generated
    return ManifoldFigures(
        precision=float((between <= radius2(y, 3)[:, None]).any(axis=0).mean()),
        recall=float((between <= radius2(x, 3)[None]).any(axis=1).mean()),
        density=float((between < radius2(y, 5)[:, None]).sum() / (5 * len(x))),
        coverage=float((between < radius2(y, 5)[:, None]).any(axis=1).mean()),
    )


def features(num, dimensions=12, seed=0, shift=0.0, scale=1.0):
    return (shift + scale * np.random.default_rng(seed).normal(size=(num, dimensions))).astype(np.float32)


def tied_sets():
    """Integer features: many pairs at exactly equal distances, copies within the sets and between them."""
    generator = np.random.default_rng(3)
    real, generated = (generator.integers(0, 3, (n, 4)).astype(np.float32) for n in (90, 110))
    generated[:20] = real[:20]
    generated[20:30] = generated[30]
    return generated, real


def measure(generated, real, tile=2048, processes=None):
    options = {"tile": tile, "processes": processes}
    return manifold_figures(neighbourhoods(generated, **options), neighbourhoods(real, **options), **options)


CASES = {
    "overlapping": lambda: (features(120, shift=0.3), features(150, seed=1)),
    "far": lambda: (features(60, shift=9.0), features(50, seed=1)),
    "narrow": lambda: (features(80, scale=0.2), features(90, seed=1)),
    "a large offset": lambda: (features(70, shift=500.2, scale=0.5), features(90, seed=1, shift=500.0)),
    "one dimension": lambda: (features(60, dimensions=1), features(61, dimensions=1, seed=1)),
    "ties": tied_sets,
    "itself": lambda: (features(80), features(80)),
}


@pytest.mark.parametrize("case", CASES)
def test_brute_force_exactly_for_any_tile(case):
    generated, real = CASES[case]()
    expected = brute_force(generated, real)
    for tile in (7, 32, 2048):
        assert measure(generated, real, tile) == expected, tile


@pytest.mark.parametrize("case", ["overlapping", "ties", "itself"])
@pytest.mark.parametrize("size", [2, 3])
def test_any_number_of_processes(case, size):
    generated, real = CASES[case]()
    expected = brute_force(generated, real)
    for tile in (16, 2048):
        found = shared(size, lambda processes, tile=tile: measure(generated, real, tile, processes))
        assert found == [expected] * size


def test_what_the_figures_say():
    far = measure(*CASES["far"]())
    assert (far.precision, far.recall, far.density, far.coverage) == (0, 0, 0, 0)
    narrow = measure(*CASES["narrow"]())
    assert narrow.precision > 0.9 > 0.3 > narrow.recall  # all plausible, little of the variety
    same = measure(*CASES["itself"]())
    assert (same.precision, same.recall, same.coverage) == (1, 1, 1)
    assert same.density == pytest.approx(1)  # itself and the four nearer than the fifth neighbour


def test_radii_are_the_distances_of_the_third_and_fifth_neighbour():
    rows = np.array([[0.0], [1.0], [3.0], [7.0], [15.0], [31.0], [63.0]], dtype=np.float32)
    found = neighbourhoods(rows).radii2
    assert found[0].tolist() == [7.0**2, 31.0**2]
    assert found[6].tolist() == [56.0**2, 62.0**2]


def test_products_in_low_precision_are_not_used():
    generated, real = CASES["overlapping"]()
    torch.set_float32_matmul_precision("medium")
    try:
        assert measure(generated, real) == brute_force(generated, real)
    finally:
        torch.set_float32_matmul_precision("highest")


def test_what_cannot_be_is_refused():
    with pytest.raises(UserError, match="more than 5 images"):
        neighbourhoods(features(5))
    bad = features(9)
    bad[2, 1] = np.nan
    with pytest.raises(UserError, match="made hold NaN"):
        neighbourhoods(bad, what="pixels features of made")
    with pytest.raises(UserError, match="12 and 3 dimensions"):
        manifold_figures(neighbourhoods(features(9)), neighbourhoods(features(9, dimensions=3)))
