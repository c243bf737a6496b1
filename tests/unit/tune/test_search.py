"""Coordinate search: finds the minimum of what it is for, within its budget, and asks for no point twice."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoguidance.tune import coordinate_search
from autoguidance.tune.search import Point


class Bowl:
    """A quadratic on a grid, with the points that were asked for and in how many calls."""

    def __init__(self, centre: tuple[float, ...], matrix: np.ndarray) -> None:
        self.centre, self.matrix = np.array(centre), matrix
        self.asked: list[Point] = []
        self.calls = 0

    def value(self, point: Point) -> float:
        offset = np.array(point) - self.centre
        return float(offset @ self.matrix @ offset)

    def __call__(self, points: list[Point]) -> list[float]:
        self.asked += points
        self.calls += 1
        return [self.value(point) for point in points]


SIZES = (18, 9, 11, 11)


@pytest.mark.parametrize("centre", [(4, 3, 5, 2), (0, 0, 0, 0), (17, 8, 10, 10), (9, 8, 0, 5)])
def test_minimum_of_a_separable_quadratic(centre: Point) -> None:
    bowl = Bowl(centre, np.diag([1.0, 4.0, 0.5, 2.0]))
    found = coordinate_search(SIZES, bowl, [(9, 4, 5, 5)], budget=200)
    assert found.best == centre
    assert found.value == 0
    assert not found.exhausted
    assert found.at_edge == tuple(
        i for i, (c, size) in enumerate(zip(centre, SIZES, strict=True)) if c in (0, size - 1)
    )
    assert max(Counter(bowl.asked).values()) == 1
    assert found.measured == {point: bowl.value(point) for point in bowl.asked}
    assert len(bowl.asked) < 70  # of 19,602 points


@pytest.mark.parametrize("angle", [0.2, 0.5, -0.4])
def test_rotated_quadratic(angle: float) -> None:
    # Axes at an angle to the grid, twice as steep across as along. No neighbour along an axis is better than the end.
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    bowl = Bowl((6.3, 4.2), turn @ np.diag([1.0, 4.0]) @ turn.T)
    found = coordinate_search((18, 11), bowl, [(15, 9), (2, 2)], budget=100)
    every = {(i, j): bowl.value((i, j)) for i in range(18) for j in range(11)}
    assert found.best == min(every, key=every.__getitem__)
    assert max(Counter(bowl.asked).values()) == 1


def test_a_diagonal_follows_a_narrow_valley() -> None:
    # 30 times as steep across the diagonal as along it: single axes creep along the wall and stop before the end.
    across, along = np.array([1, -1]) / math.sqrt(2), np.array([1, 1]) / math.sqrt(2)
    matrix = 30 * np.outer(across, across) + np.outer(along, along)
    plain, both = Bowl((12, 12), matrix), Bowl((12, 12), matrix)
    stuck = coordinate_search((18, 18), plain, [(3, 4)], budget=60)
    found = coordinate_search((18, 18), both, [(3, 4)], budget=60, diagonals=[(0, 1)])
    assert found.best == (12, 12)
    assert stuck.best != (12, 12)
    assert len(both.asked) < len(plain.asked)
    assert max(Counter(both.asked).values()) == 1
    assert all(0 <= index < 18 for point in both.asked for index in point)


def test_weak_dependence_costs_little() -> None:
    bowl = Bowl((6, 6), np.array([[1.0, 0.3], [0.3, 1.0]]))
    assert coordinate_search((18, 18), bowl, [(0, 17), (17, 17)], budget=60).best == (6, 6)


def _quadratics() -> st.SearchStrategy[tuple[Point, Point]]:
    points = st.tuples(*(st.integers(0, size - 1) for size in SIZES))
    return st.tuples(points, points)


@settings(max_examples=50, deadline=None)
@given(_quadratics(), st.integers(1, 40))
def test_budget_is_kept_and_the_best_measured_is_returned(ends: tuple[Point, Point], budget: int) -> None:
    centre, start = ends
    bowl = Bowl(centre, np.diag([1.0, 1.0, 1.0, 1.0]))
    found = coordinate_search(SIZES, bowl, [start, start, (0, 0, 0, 0), (1, 1, 1, 1)], budget)
    assert len(bowl.asked) == len(set(bowl.asked)) == len(found.measured) <= budget
    assert found.value == min(map(bowl.value, bowl.asked)) == bowl.value(found.best)
    assert all(0 <= index < size for point in bowl.asked for index, size in zip(point, SIZES, strict=True))
    assert found.exhausted == (len(bowl.asked) >= budget)
    if not found.exhausted:
        assert found.best == centre


def test_points_are_asked_for_a_few_at_a_time() -> None:
    bowl = Bowl((3, 3, 3, 3), np.eye(4))
    starts = [(9, 4, 5, 5), (1, 1, 1, 1), (2, 2, 2, 2)]
    coordinate_search(SIZES, bowl, starts, budget=50)
    assert bowl.asked[:3] == starts  # in one call, in their order
    assert bowl.calls < len(bowl.asked)


def test_axis_of_one_value() -> None:
    bowl = Bowl((5, 0), np.eye(2))
    found = coordinate_search((9, 1), bowl, [(0, 0)], budget=30)
    assert found.best == (5, 0)
    assert found.at_edge == ()


@pytest.mark.parametrize("noise", [0.5, 2.0])
def test_noise_ends_the_search_early_but_not_wrong(noise: float) -> None:
    generator = np.random.default_rng(0)
    bowl = Bowl((9, 5), np.eye(2))
    values: dict[Point, float] = {}

    def measure(points: list[Point]) -> list[float]:
        return [values.setdefault(p, bowl.value(p) + noise * abs(generator.standard_normal())) for p in points]

    found = coordinate_search((18, 11), measure, [(2, 2), (15, 9)], budget=80)
    # A step is refused only where noise outweighs it: within one stride of 1, sqrt(3 sigma) from the centre.
    assert bowl.value(found.best) <= 2 * 3 * noise + 2


def test_a_failing_measurement_comes_through() -> None:
    def measure(points: list[Point]) -> list[float]:
        raise RuntimeError("worker died")

    with pytest.raises(RuntimeError, match="worker died"):
        coordinate_search((3,), measure, [(0,)], budget=3)
