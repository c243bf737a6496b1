"""One suite for every board: what claiming, finishing, failing and giving back mean."""

import json
import math
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from board_workers import empty_database

from autoguidance.errors import UserError
from autoguidance.tune.board import Board, State, Unit, open_board

AXES = {"weight": (1.0, 4.0), "ema_main": (0.02, 0.25), "guide": ("runs/main:8448", "runs/guide:16384")}
UNIT = Unit.of({"weight": 1.5, "ema_main": 0.07, "guide": "runs/main:8448"}, first_seed=5_000_000, num_images=100)
LONGER = Unit(UNIT.setting, UNIT.first_seed, 1000)
LATER = Unit(UNIT.setting, UNIT.first_seed + 100, 100)
OTHER = Unit.of({"weight": 2, "guide": "runs/guide:16384"}, first_seed=5_000_000, num_images=100)

Workers = Callable[[], Board]


@pytest.fixture(params=["memory", "journal", "sqlite"])
def worker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Workers]:
    """Another worker's view of the same search."""
    shared = open_board(None, "s", description={}, axes=AXES)
    storage = {"journal": tmp_path / "search.jsonl", "sqlite": tmp_path / "search.db"}.get(request.param)
    opened = [shared]
    if request.param == "sqlite":
        (tmp_path / "search.db").write_bytes(empty_database())

    def join() -> Board:
        if storage is not None:
            opened.append(open_board(storage, "s", description={"a": 1}, axes=AXES))
        return opened[-1]

    yield join
    for board in opened:
        board.close()


@pytest.fixture
def boards(worker: Workers) -> tuple[Board, Board]:
    return worker(), worker()


def values(state: State) -> dict[Unit, float]:
    return {item.unit: item.value for item in state.finished}


def test_a_unit_is_claimed_once_and_finished_once(boards: tuple[Board, Board]) -> None:
    one, two = boards
    assert one.state() == two.state() == State()
    claim = one.claim(UNIT)
    assert claim is not None
    assert claim.unit == UNIT
    assert one.claim(UNIT) is None
    assert two.claim(UNIT) is None
    assert one.state().pending == two.state().pending == (UNIT,)
    assert claim.finish(2.5, {"seconds": 1.25, "host": "a", "list": [1, None]})
    for board in boards:
        assert board.claim(UNIT) is None
        (item,) = board.state().finished
        assert (item.unit, item.value) == (UNIT, 2.5)
        assert item.details == {"seconds": 1.25, "host": "a", "list": [1, None]}
        assert board.state() == State(finished=(item,))


def test_units_differ_in_the_setting_the_seeds_and_the_count(boards: tuple[Board, Board]) -> None:
    one, two = boards
    units = (UNIT, LONGER, LATER, OTHER)
    claims = [board.claim(unit) for board, unit in zip((one, two, one, two), units, strict=True)]
    assert set(one.state().pending) == set(two.state().pending) == set(units)
    for index, claim in reversed(list(enumerate(claims))):
        assert claim is not None
        assert claim.finish(float(index), {})
    assert [item.unit for item in one.state().finished] == list(reversed(units))  # in order of completion
    assert one.state() == two.state()
    assert len({item.number for item in one.state().finished}) == len(units)


def test_the_same_setting_in_another_order_or_kind_of_number_is_the_same_unit(boards: tuple[Board, Board]) -> None:
    again = Unit.of({"guide": "runs/guide:16384", "weight": 2.0}, first_seed=5_000_000, num_images=100)
    assert again == OTHER
    assert boards[0].claim(OTHER) is not None
    assert boards[1].claim(again) is None


@pytest.mark.parametrize("weight", [1.1, 0.1 + 0.2 + 1, math.nextafter(1.5, 2), 4.0, 1.0])
def test_numbers_come_back_exactly(boards: tuple[Board, Board], weight: float) -> None:
    unit = Unit.of({"weight": weight}, first_seed=0, num_images=1)
    claim = boards[0].claim(unit)
    assert claim is not None
    distance = math.pi * weight * 1e-7
    claim.finish(distance, {})
    assert values(boards[1].state()) == {unit: distance}


def test_what_is_given_back_can_be_claimed(boards: tuple[Board, Board]) -> None:
    one, two = boards
    for end in ("release", "leave", "interrupt"):
        claim = one.claim(UNIT)
        assert claim is not None
        if end == "release":
            claim.release()
            claim.release()  # harmless
        elif end == "leave":
            with claim:
                pass
        else:
            with pytest.raises(KeyboardInterrupt), claim:
                raise KeyboardInterrupt
        assert one.state() == two.state() == State()
    assert two.claim(UNIT) is not None


def test_failures_are_counted_and_the_unit_is_free(boards: tuple[Board, Board]) -> None:
    one, two = boards
    claim = one.claim(UNIT)
    assert claim is not None
    claim.fail("CUDA out of memory")
    assert one.state() == two.state() == State(failed={UNIT: 1})
    claim = two.claim(UNIT)
    assert claim is not None
    with pytest.raises(ZeroDivisionError), claim:
        1 / 0  # noqa: B018
    for number, bad in enumerate((math.nan, math.inf, -math.inf), 3):
        claim = one.claim(UNIT)
        assert claim is not None
        assert not claim.finish(bad, {})
        assert one.state() == two.state() == State(failed={UNIT: number})
    claim = one.claim(UNIT)
    assert claim is not None
    assert claim.finish(1.0, {})
    assert values(two.state()) == {UNIT: 1.0}
    assert two.state().failed == {UNIT: 5}


def test_a_claim_is_settled_once(boards: tuple[Board, Board]) -> None:
    claim = boards[0].claim(UNIT)
    assert claim is not None
    with claim:
        assert claim.finish(1.0, {})
    claim.release()
    for action in (lambda: claim.finish(2.0, {}), lambda: claim.fail("late")):
        with pytest.raises(RuntimeError, match="settled already"):
            action()
    assert values(boards[1].state()) == {UNIT: 1.0}
    assert boards[1].state().failed == {}


def test_details_that_are_not_json_fail_the_unit_and_show_the_bug(boards: tuple[Board, Board]) -> None:
    for details in ({"a": math.nan}, {"a": object()}):
        claim = boards[0].claim(UNIT)
        assert claim is not None
        with pytest.raises((ValueError, TypeError)), claim:
            claim.finish(1.0, details)
    assert boards[1].state() == State(failed={UNIT: 2})


def test_details_are_copied(boards: tuple[Board, Board]) -> None:
    details = {"a": [1]}
    claim = boards[0].claim(UNIT)
    assert claim is not None
    claim.finish(1.0, details)
    details["a"].append(2)
    assert json.dumps(boards[0].state().finished[0].details) == '{"a": [1]}'


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"weight": 4.5}, r"weight=4.5 lies outside \(1.0, 4.0\)"),
        ({"weight": "large"}, "weight=large lies outside"),
        ({"guide": "runs/unknown"}, "guide=runs/unknown lies outside"),
        ({"guide": 3.0}, "guide=3.0 lies outside"),
        ({"width": 1.0}, "width is none of the axes weight, ema_main, guide"),
    ],
)
def test_settings_outside_the_axes_are_refused(boards: tuple[Board, Board], setting: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        boards[0].claim(Unit.of(setting, first_seed=0, num_images=1))
    assert boards[1].state() == State()


def test_threads_of_one_worker(boards: tuple[Board, Board]) -> None:
    won: list[int] = []

    def take(board: Board) -> None:
        claim = board.claim(UNIT)
        if claim is not None:
            won.append(claim.finish(1.0, {}))

    threads = [threading.Thread(target=take, args=(boards[i % 2],)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert won == [True]
    assert values(boards[0].state()) == {UNIT: 1.0}
    assert boards[0].state().pending == ()
