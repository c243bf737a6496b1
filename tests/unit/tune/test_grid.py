"""The grid of settings: points, settings and coordinates are one to one, and what is excluded does not exist."""

import math

import numpy as np
import pytest

from autoguidance.errors import UserError
from autoguidance.tune import Axis, Grid
from autoguidance.tune.grid import subset

WEIGHT = Axis(name="weight", values=(1.2, 1.5, 2.0), coordinates=(0.0, 0.3, 1.0))
GUIDE = Axis(name="guide", values=("a:1", "a:2", "b:1"), coordinates=(0.0, 1.0, 0.0), categories=(0, 0, 1))
ONE = Axis(name="ema_main", values=(0.05,), coordinates=(-3.0,))
GRID = Grid((WEIGHT, GUIDE, ONE), frozenset({((0, 2), (1, 1))}))


def test_excluded_combinations_do_not_exist() -> None:
    assert len(GRID.points) == 3 * 3 - 1
    assert (2, 1, 0) not in GRID.points
    assert GRID.point({"weight": 2.0, "guide": "a:2", "ema_main": 0.05}) is None
    assert GRID.point({"weight": 2.0, "guide": "a:1", "ema_main": 0.05}) == (2, 0, 0)


def test_coordinates_leave_out_what_cannot_vary() -> None:
    assert GRID.coordinates.shape == (8, 2)
    place = GRID.index[1, 2, 0]
    assert GRID.coordinates[place].tolist() == [0.3, 0.0]
    assert GRID.categories[place] != GRID.categories[GRID.index[1, 0, 0]]
    assert Grid((ONE,)).coordinates.shape == (1, 1)


def test_nearest_keeps_names_and_rounds_numbers() -> None:
    assert GRID.setting(GRID.nearest({"weight": 1.45, "guide": "b:1"})) == {
        "weight": 1.5,
        "guide": "b:1",
        "ema_main": 0.05,
    }
    # a:2 does not exist at w = 2; the guide that was named stays, the weight gives way
    assert GRID.setting(GRID.nearest({"weight": 2.0, "guide": "a:2"}))["guide"] == "a:2"


def test_edges_are_of_numbers_with_more_than_two_values() -> None:
    assert GRID.at_edge((0, 0, 0)) == ("weight",)
    assert GRID.at_edge((1, 0, 0)) == ()


def test_a_subset_is_drawn_by_seed_and_whole_where_it_fits() -> None:
    assert subset(range(5), 10, 0).tolist() == [0, 1, 2, 3, 4]
    drawn = subset(range(1000), 10, 0)
    assert len(set(drawn.tolist())) == 10
    assert np.array_equal(drawn, subset(range(1000), 10, 0))
    assert not np.array_equal(drawn, subset(range(1000), 10, 1))


@pytest.mark.parametrize(
    ("values", "coordinates", "categories"),
    [((), (), ()), ((1.0, 1.0), (0.0, 1.0), ()), ((1.0, 2.0), (0.0,), ()), ((1.0, 2.0), (0.0, math.pi), (0,))],
)
def test_axes_that_do_not_fit_are_refused(values, coordinates, categories) -> None:
    with pytest.raises(UserError, match="weight"):
        Axis(name="weight", values=values, coordinates=coordinates, categories=categories)


PUSH = Axis(name="weight", values=(1.2, 2.0), coordinates=(-0.8, 0.2), amounts=(0.2, 1.0))
AGE = Axis(name="guide", values=("a:1", "a:4"), coordinates=(0.0, 1.0), fades=True, scales=(1.0, 0.5))
FADING = Axis(name="ema_guide", values=(0.05, 0.1, 0.2), coordinates=(-3.0, -2.3, -1.6), fades=True)
WIDTH = Axis(name="ema_main", values=(0.05, 0.1), coordinates=(-3.0, -2.3))


def test_what_a_guide_decides_fades_with_guidance() -> None:
    grid = Grid((PUSH, AGE, FADING, WIDTH))
    for w, age, u in ((0, 0, 0.2), (1, 0, 1.0), (0, 1, 0.1), (1, 1, 0.5)):
        t = 1 - math.exp(-u / 0.3)
        place = grid.places([(w, age, 2, 1)])
        assert place.coordinates[0] == pytest.approx([math.log(u + 0.25), t * (age - 0.5), t * 0.7, -2.3])
        assert place.strengths[0] == pytest.approx(t)
    # The unguided model: no push, nothing of the guide, and the main model's width.
    assert grid.without_guidance({"ema_main": 0.1}) == pytest.approx([math.log(0.25), 0.0, 0.0, -2.3])
    assert grid.without_guidance({"ema_main": 0.07}) is None  # not a width of this grid
    assert GRID.without_guidance({"ema_main": 0.05}) is None  # no axis says what no guidance is


def test_amounts_and_scales_must_fit() -> None:
    for wrong in ({"amounts": (1.0,)}, {"scales": (0.5, 1.0, 2.0)}):
        with pytest.raises(UserError, match="weight: one amount and scale per value"):
            Axis(name="weight", values=(1.2, 2.0), coordinates=(0.0, 1.0), **wrong)
