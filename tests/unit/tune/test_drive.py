"""Keeping workers busy, and several methods in one contest, with measurements that take no time."""

import math
from collections import Counter
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest

from autoguidance.errors import NotFiniteError, UserError
from autoguidance.sample import Heun
from autoguidance.tune import (
    Contest,
    Entry,
    GuideSource,
    Measured,
    MemoryBoard,
    SearchPlan,
    SearchSpace,
    State,
    Task,
    Unit,
    drive,
)

STDS = (0.03, 0.05, 0.07, 0.1, 0.15, 0.2)
MAIN = GuideSource("run/main", 8192, STDS)
GUIDES = (GuideSource("run/main", 512, STDS), GuideSource("run/guide", 512, STDS))
BEST = {"unguided": 0.05, "cfg": 1.3, "autoguidance": 1.6}


def contest(finalists: int = 1, counts: tuple[int, ...] = (128, 384)) -> Contest:
    plan = SearchPlan(
        counts=counts, budget=12 * counts[-1], finalists=finalists, confirm_repeats=2, confirm_images=counts[-1]
    )
    spaces = [
        SearchSpace("unguided", MAIN, Heun()),
        SearchSpace("cfg", MAIN, Heun(), (), GuideSource("run/unconditional", 8192, STDS)),
        SearchSpace("autoguidance", MAIN, Heun(), GUIDES),
    ]
    return Contest([Entry(space=space, plan=plan) for space in spaces])


def distance(unit: Unit) -> float:
    setting: dict[str, Any] = unit.values
    method = setting["method"]
    value = math.log(setting["ema_main"] / 0.05) ** 2
    if method != "unguided":
        value += 4 * math.log((setting["weight"] - 0.75) / (BEST[method] - 0.75)) ** 2
    if method == "autoguidance":
        value += math.log(setting["ema_guide"] / 0.1) ** 2 + (setting["guide"] != "guide:512")
    return {"unguided": 2.0, "cfg": 1.0, "autoguidance": 0.5}[method] * (1 + value) + 30 / unit.num_images


class Pool:
    """Measures at once; `broken` units fail with a message."""

    def __init__(self, contest: Contest, num_processes: int, broken: dict[Unit, str] | None = None) -> None:
        self.num_processes, self.broken = num_processes, broken or {}
        self.tasks: list[Unit] = []

    def submit(self, task: tuple[Unit, Task]) -> "Future[Measured | str]":
        future: Future[Measured | str] = Future()
        unit = task[0]
        self.tasks.append(unit)
        cost = {"evaluations_main": 63.0, "evaluations_guide": 0.0, "seconds_per_image": 0.1}
        future.set_result(self.broken.get(unit) or Measured(fd=distance(unit), **cost))
        return future

    def result(self, future: "Future[Measured | str]") -> Measured:
        found = future.result()
        if isinstance(found, str):
            raise (NotFiniteError if "NaN" in found else UserError)(found)
        return found


def run(contest: Contest, pool: Pool, board: MemoryBoard | None = None) -> State:
    return drive(board or MemoryBoard(), contest.next, pool, lambda unit: (unit, contest.task(unit)))  # type: ignore[arg-type]


@pytest.mark.parametrize("workers", [1, 3])
def test_every_method_finds_its_setting_and_is_confirmed_on_the_same_seeds(workers: int) -> None:
    made = contest()
    pool = Pool(made, workers)
    state = run(made, pool)
    assert max(Counter(pool.tasks).values()) == 1
    assert not state.pending
    best = made.best(state)
    assert list(best) == ["unguided", "cfg", "autoguidance"]
    for method, (pair, ranked) in best.items():
        assert pair.method == method
        assert len(ranked.confirmed) == len(made.confirmations(method, state)) == 2
        if method != "unguided":
            weight = pair.weight if method == "autoguidance" else pair.cfg_weight
            assert abs(math.log((weight - 0.75) / (BEST[method] - 0.75))) < 0.35
    assert best["autoguidance"][0].guide is not None
    assert best["autoguidance"][0].guide.startswith("run/guide@")
    confirmed = [unit for unit in pool.tasks if unit.first_seed < 5_000_000]
    assert pool.tasks[-len(confirmed) :] == confirmed  # after all searches
    seeds = {m: {u.first_seed for u in confirmed if u.values["method"] == m} for m in best}
    assert seeds == {method: {0, 384} for method in best}
    assert made.progress(state)[0] == made.progress(state)[1]
    assert made.figures(state) == {"best": min(i.value for i in state.finished if i.unit.num_images == 384)}
    assert made.figures(State()) == {}


def test_methods_are_searched_in_order_and_build_on_each_other() -> None:
    made = contest()
    pool = Pool(made, 1)
    run(made, pool)
    searched = [unit.values["method"] for unit in pool.tasks if unit.first_seed >= 5_000_000]
    assert searched == sorted(searched, key=["unguided", "cfg", "autoguidance"].index)
    first = {
        m: next(u.values for u in pool.tasks if u.values["method"] == m) for m in ("unguided", "cfg", "autoguidance")
    }
    assert first["cfg"]["ema_main"] == first["autoguidance"]["ema_main"] == 0.05  # what unguided found
    # The rungs of a search are continued; confirmation and single counts are not.
    assert made.task(pool.tasks[0]).extend
    assert not made.task(pool.tasks[-1]).extend


def test_stopped_anywhere_it_ends_the_same() -> None:
    whole = run(contest(), Pool(contest(), 1))
    board = MemoryBoard()
    for limit in (3, 20, 10_000):  # each time another process, with the board as the only memory
        made, count = contest(), 0

        def ask(state: State, made: Contest = made, limit: int = limit) -> Unit | None:
            nonlocal count
            count += 1
            return made.next(state) if count <= limit else None

        state = drive(board, ask, Pool(made, 1), lambda unit, made=made: (unit, made.task(unit)))  # type: ignore[arg-type]
    assert {item.unit for item in state.finished} == {item.unit for item in whole.finished}


def test_a_setting_that_gives_nan_is_left_out_and_the_rest_goes_on() -> None:
    made = contest()
    first = run(contest(), pool := Pool(made, 1)).finished[0].unit
    broken = {first: "unguided: NaN or infinity for 3 of 64 images"}
    pool = Pool(made, 1, broken)
    state = run(made, pool)
    assert pool.tasks.count(first) == 2
    assert state.failed == {first: 2}
    assert len(made.best(state)) == 3


def test_another_error_ends_the_search_and_gives_back_what_is_under_way() -> None:
    made, board = contest(), MemoryBoard()
    unit = made.next(MemoryBoard().state())
    assert unit is not None
    with pytest.raises(UserError, match="does not exist"):
        run(made, Pool(made, 2, {unit: "run/main does not exist"}), board)
    assert board.state().pending == ()
    assert np.isfinite([item.value for item in board.state().finished]).all()
