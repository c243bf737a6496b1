"""What to measure next: within the budget, nothing twice, rungs in order, the same from any worker; and it finds the valley."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoguidance.errors import UserError
from autoguidance.tune import Axis, Finished, Grid, MemoryBoard, Point, Policy, SearchPlan, State, Unit
from autoguidance.tune.policy import rung_counts

COUNTS = (128, 384, 1152)
SIZES = (8, 6, 6)
GRID = Grid(
    tuple(
        Axis(name=name, values=tuple(float(i) for i in range(n)), coordinates=tuple(i / (n - 1) for i in range(n)))
        for name, n in zip(("a", "b", "c"), SIZES, strict=True)
    )
)
STARTS = [(6, 1, 5), (1, 5, 1)]


def plan(**changes) -> SearchPlan:
    given = {"counts": COUNTS, "budget": 12 * 1152, "finalists": 2, "confirm_repeats": 2, "confirm_images": 1152}
    return SearchPlan(**{**given, **changes})


class Valley:
    """A distance with one valley, larger and noisier on few images; the noise belongs to setting and seeds, as in truth."""

    def __init__(self, centre: Point, noise: float = 0.01) -> None:
        self.centre, self.noise = centre, noise

    def log(self, point: Point) -> float:
        x = np.array([i / (n - 1) for i, n in zip(point, SIZES, strict=True)])
        c = np.array([i / (n - 1) for i, n in zip(self.centre, SIZES, strict=True)])
        return float(2.0 * np.square(x - c).sum() + 1.0 * (x - c)[0] * (x - c)[1])

    def __call__(self, unit: Unit) -> float:
        point = GRID.point(unit.values)
        assert point is not None
        generator = np.random.default_rng([*point, unit.first_seed % 1000, unit.num_images])
        wobble = self.noise * math.sqrt(1152 / unit.num_images) * generator.standard_normal()
        return math.exp(self.log(point) + wobble) + 50 / unit.num_images


def search(
    policy: Policy, valley: Valley, workers: int = 1, board: MemoryBoard | None = None
) -> tuple[State, list[Unit]]:
    """Measure until nothing is left; with several workers the oldest claim finishes first."""
    board = board or MemoryBoard()
    held, asked = [], []
    while True:
        unit = policy.next(board.state()) if len(held) < workers else None
        if unit is not None:
            claim = board.claim(unit)
            assert claim is not None, f"{unit} was asked for twice"
            held.append(claim)
            asked.append(unit)
        elif held:
            claim = held.pop(0)
            claim.finish(valley(claim.unit), {})
        else:
            return board.state(), asked


@pytest.mark.parametrize("counts", [COUNTS, COUNTS[1:], COUNTS[2:]])
@pytest.mark.parametrize("centre", [(2, 3, 4), (7, 0, 5)])
def test_it_finds_the_valley_with_a_twentieth_of_the_grid(counts, centre: Point) -> None:
    budget = math.prod(SIZES) * 1152 // 20
    valley = Valley(centre)
    policy = Policy(GRID, STARTS, plan(counts=counts, budget=budget))
    state, _ = search(policy, valley)
    best = policy.best(state)
    assert best is not None
    assert valley.log(best.point) < 0.06  # the next neighbours lie at 0.02 to 0.06, the median of the grid at 1
    assert policy.spent(state) <= budget


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_rungs_budget_and_confirmation(workers: int) -> None:
    policy = Policy(GRID, STARTS, plan())
    state, asked = search(policy, Valley((4, 3, 3)), workers)
    searched = [unit for unit in asked if unit.first_seed == policy.plan.first_seed]
    confirmed = [unit for unit in asked if unit.first_seed != policy.plan.first_seed]
    assert asked[: len(STARTS)] == [policy.unit(point, policy.plan.first_seed, 128) for point in STARTS]
    assert len(set(asked)) == len(asked)
    # No rung is skipped, and each comes after the one below.
    for place, unit in enumerate(searched):
        rung = COUNTS.index(unit.num_images)
        below = [u for u in searched[:place] if u.setting == unit.setting]
        assert sorted(u.num_images for u in below) == list(COUNTS[:rung])
    by_rung = Counter(unit.num_images for unit in searched)
    assert by_rung[128] > 2 * by_rung[384] > 2 * by_rung[1152] > 4
    spent = sum(policy.plan.cost(COUNTS.index(unit.num_images)) for unit in searched)
    assert 0.9 * policy.plan.budget < spent <= policy.plan.budget
    # Two finalists on two fresh sets of seeds, after the search.
    assert asked[-len(confirmed) :] == confirmed
    assert Counter(unit.first_seed for unit in confirmed) == {0: 2, 1152: 2}
    assert {unit.num_images for unit in confirmed} == {1152}
    best = policy.best(state)
    assert best is not None
    values = {item.unit: item.value for item in state.finished}
    means = {
        setting: np.mean([values[unit] for unit in confirmed if unit.setting == setting])
        for setting in {unit.setting for unit in confirmed}
    }
    assert best.mean == pytest.approx(min(means.values()))
    assert policy.next(state) is None


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 40), st.integers(0, 10**6))
def test_any_worker_asks_for_the_same(stopped_after: int, seed: int) -> None:
    # Killed after some measurements, and begun anew from what is on the board in another order.
    valley, small = Valley((3, 3, 3)), plan(budget=5 * 1152)
    first, board = Policy(GRID, STARTS, small), MemoryBoard()
    for _ in range(stopped_after):
        unit = first.next(board.state())
        if unit is None:
            break
        claim = board.claim(unit)
        assert claim is not None
        claim.finish(valley(unit), {})
    state = board.state()
    shuffled = list(state.finished)
    np.random.default_rng(seed).shuffle(shuffled)  # type: ignore[arg-type]
    assert Policy(GRID, STARTS, small).next(State(tuple(shuffled))) == first.next(state)


def test_what_fails_twice_is_left_alone() -> None:
    policy, valley, board = Policy(GRID, STARTS, plan(budget=6 * 1152)), Valley((4, 3, 3)), MemoryBoard()
    bad = policy.unit(STARTS[0], policy.plan.first_seed, 128)
    asked: Counter[Unit] = Counter()
    while (unit := policy.next(board.state())) is not None:
        asked[unit] += 1
        claim = board.claim(unit)
        assert claim is not None
        if unit == bad:
            claim.fail("NaN")
        else:
            claim.finish(valley(unit), {})
    assert asked[bad] == 2
    assert max(count for unit, count in asked.items() if unit != bad) == 1
    assert all(ranked.point != STARTS[0] for ranked in policy.ranking(board.state()))


def test_everything_failing_ends_the_search_without_a_result() -> None:
    policy, board = Policy(GRID, STARTS, plan(budget=3 * 1152)), MemoryBoard()
    for _ in range(200):
        unit = policy.next(board.state())
        if unit is None:
            break
        claim = board.claim(unit)
        assert claim is not None
        claim.fail("NaN")
    assert policy.next(board.state()) is None
    assert policy.best(board.state()) is None


def test_units_of_others_on_the_board_are_not_its_own() -> None:
    mine = Policy(GRID, STARTS, plan(), {"method": "mine"})
    other = Policy(GRID, STARTS, plan(), {"method": "other"})
    unit = other.unit(STARTS[0], other.plan.first_seed, 128)
    state = State((Finished(unit, 0.1, {}, 0),), (other.unit(STARTS[1], other.plan.first_seed, 128),))
    assert mine.next(state) == mine.unit(STARTS[0], mine.plan.first_seed, 128)
    assert mine.spent(state) == 0
    assert other.spent(state) == 256


def test_a_grid_of_one_setting() -> None:
    grid = Grid((Axis(name="a", values=(1.0,), coordinates=(0.0,)),))
    policy = Policy(grid, [(0,)], plan(budget=5000, finalists=1))
    board = MemoryBoard()
    asked = []
    while (unit := policy.next(board.state())) is not None:
        asked.append((unit.first_seed, unit.num_images))
        claim = board.claim(unit)
        assert claim is not None
        claim.finish(2.0, {})
    assert [n for first, n in asked if first == policy.plan.first_seed] == [128, 384, 1152]
    best = policy.best(board.state())
    assert best is not None
    assert best.confirmed == (2.0, 2.0)


def test_the_curve_shows_the_valley() -> None:
    policy = Policy(GRID, STARTS, plan())
    state, _ = search(policy, Valley((4, 3, 3)))
    best = policy.best(state)
    assert best is not None
    curve = policy.curve(state, 0, best.point)
    assert [value for value, _, _ in curve] == [float(i) for i in range(8)]
    lowest = min(curve, key=lambda item: item[1])
    assert abs(lowest[0] - 4) <= 1
    assert curve[7][1] > 1.2 * lowest[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"counts": (384, 128)}, "ascending"),
        ({"counts": ()}, "ascending"),
        ({"budget": 1000}, "less than one measurement on 1152"),
        ({"keep": 1.0}, "keep"),
        ({"final_share": 1.0}, "final share"),
        ({"confirm_images": 0}, "confirmation"),
    ],
)
def test_plans_that_cannot_be_are_refused(changes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan(**changes)


@pytest.mark.parametrize(
    ("num_images", "num_features", "expected"),
    [
        (768, 64, (256, 768)),  # a ninth would be fewer than four images per feature
        (1152, 16, (128, 384, 1152)),
        (50_000, 2048, (16_704, 50_000)),
        (50_000, 1024, (5_568, 16_704, 50_000)),
        (200, 64, (200,)),
    ],
)
def test_rungs_have_four_images_per_feature(num_images: int, num_features: int, expected: tuple[int, ...]) -> None:
    assert rung_counts(num_images, num_features) == expected
