"""The shared board under races, kills, expiry and broken storage: nothing finished is lost, nothing counts twice."""

import logging
import os
import random
import sqlite3
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import board_workers
import optuna
import pytest
import sqlalchemy
from board_workers import AXES, DESCRIPTION, empty_database, open_shared, unit, value
from optuna.trial import TrialState

from autoguidance.errors import UserError
from autoguidance.tune import leases, storages
from autoguidance.tune.board import State
from autoguidance.tune.journal import TornJournal
from autoguidance.tune.leases import LeaseWatch, Owner
from autoguidance.tune.optuna_board import OptunaBoard

Start = Callable[..., Any]


@pytest.fixture(params=["search.jsonl", "search.db"])
def new_path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Where nothing is yet."""
    return tmp_path / request.param


@pytest.fixture
def path(new_path: Path) -> Path:
    """A storage without a study."""
    if new_path.suffix == ".db":
        new_path.write_bytes(empty_database())
    return new_path


def states(board: OptunaBoard) -> Counter[str]:
    """Trials by state, and failed ones by outcome."""
    trials = board._study.get_trials()
    return Counter(t.user_attrs["outcome"] if t.state == TrialState.FAIL else t.state.name for t in trials)


def wait_for(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


# Several processes


def test_of_many_workers_each_unit_is_finished_by_one(new_path: Path, tmp_path: Path, start: Start) -> None:
    path, num_workers, num_units = new_path, 3, 6
    go, noted = tmp_path / "go", tmp_path / "noted"
    arguments = (str(path), num_units, 0.01, str(noted), str(go))
    workers = [start(board_workers.work, *arguments) for _ in range(num_workers)]  # they create the study together
    wait_for(lambda: len(list(tmp_path.glob("go.*"))) == num_workers)
    go.touch()
    for worker in workers:
        worker.join(30)
        assert worker.exitcode == 0
    board = open_shared(path)
    state = board.state()
    assert {item.unit: item.value for item in state.finished} == {unit(i): value(i) for i in range(num_units)}
    counted = [line.split() for line in noted.read_text().splitlines()]
    assert sorted(int(index) for index, _ in counted) == list(range(num_units))
    by_unit = {item.unit: item.details["pid"] for item in state.finished}
    assert by_unit == {unit(int(index)): int(pid) for index, pid in counted}
    assert set(states(board)) <= {"COMPLETE", "withdrawn"}
    assert states(board)["COMPLETE"] == num_units


def test_who_comes_second_withdraws(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the unit was free when it looked."""
    one, two = open_shared(path), open_shared(path)
    monkeypatch.setattr(two, "state", State)
    claim = one.claim(unit(0))
    assert claim is not None
    assert two.claim(unit(0)) is None
    assert states(one) == {"RUNNING": 1, "withdrawn": 1}
    assert claim.finish(1.0, {})
    assert two.claim(unit(0)) is None
    assert states(one) == {"COMPLETE": 1, "withdrawn": 2}


def test_workers_that_are_killed_at_any_time_lose_nothing(path: Path, tmp_path: Path, start: Start) -> None:
    num_units, num_kills, draw = 10, 4, random.Random(1)
    go, noted = tmp_path / "go", tmp_path / "noted"
    go.touch()
    noted.touch()
    arguments = (str(path), num_units, 0.05, str(noted), str(go))
    board = open_shared(path)
    workers = [start(board_workers.work, *arguments) for _ in range(2)]
    before: dict[Any, float] = {}
    for _ in range(num_kills):
        time.sleep(draw.uniform(0.1, 0.35))
        victim = draw.randrange(2)
        workers[victim].kill()
        acknowledged = {unit(int(line.split()[0])) for line in noted.read_text().splitlines()}
        now = {item.unit: item.value for item in board.state().finished}
        assert now.items() >= before.items()
        assert now.keys() >= acknowledged
        before = now
        workers[victim].join()
        workers[victim] = start(board_workers.work, *arguments)  # the same command again
    for worker in workers:
        worker.join(30)
        assert worker.exitcode == 0
    state = open_shared(path).state()  # a lease is a minute: what the killed ones held was seen to be free at once
    assert {item.unit: item.value for item in state.finished} == {unit(i): value(i) for i in range(num_units)}
    assert len(state.finished) == num_units
    assert state.pending == ()
    found = states(board)
    assert found["COMPLETE"] == num_units
    assert set(found) <= {"COMPLETE", "withdrawn", "expired"}
    counted = Counter(int(line.split()[0]) for line in noted.read_text().splitlines())
    assert max(counted.values()) == 1


def test_a_dead_process_of_this_machine_is_seen_at_once(path: Path, tmp_path: Path, start: Start) -> None:
    board = open_shared(path)
    noted = tmp_path / "noted"
    holder = start(board_workers.hold, str(path), 0, str(noted))
    wait_for(noted.exists)
    assert board.state().pending == (unit(0),)
    holder.kill()  # not yet waited for: the process is a zombie of the system's
    wait_for(lambda: board.state().pending == (), seconds=2)
    assert board.state().expired == {unit(0): 1}
    claim = board.claim(unit(0))
    assert claim is not None
    assert claim.finish(1.0, {})
    holder.join()


# Leases


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pair(path: Path, clock: Clock) -> tuple[OptunaBoard, OptunaBoard]:
    """Two workers with a lease of 60 s; both are alive, as this process is. The second one's clock is ours."""
    return open_shared(path), OptunaBoard.open(path, "search", description=DESCRIPTION, axes=AXES, clock=clock)


def test_a_lease_ends_unless_it_is_renewed(pair: tuple[OptunaBoard, OptunaBoard], clock: Clock) -> None:
    one, two = pair
    claim = one.claim(unit(0))
    assert claim is not None
    assert two.state().pending == (unit(0),)
    clock.now += 59
    assert two.state().pending == (unit(0),)
    assert claim.renew(1, 1.0)
    clock.now += 59
    assert two.state().pending == (unit(0),)  # first seen with this beat now
    clock.now += 59
    assert two.state().pending == (unit(0),)
    clock.now += 2
    state = two.state()
    assert state.pending == ()
    assert state.expired == {unit(0): 1}
    assert state.failed == {}
    assert states(two) == {"expired": 1}
    assert not claim.renew(2, 1.0)


def test_the_lease_is_the_holders(path: Path, clock: Clock) -> None:
    long = open_shared(path, lease_seconds=600)
    assert long.claim(unit(0)) is not None
    short = OptunaBoard.open(path, "search", description=DESCRIPTION, axes=AXES, clock=clock, lease_seconds=6)
    assert short.state().pending == (unit(0),)
    clock.now += 590
    assert short.state().pending == (unit(0),)
    clock.now += 20
    assert short.state().pending == ()


def test_a_claim_renews_itself_and_looks_after_the_others(path: Path) -> None:
    busy, other = open_shared(path, lease_seconds=0.3), open_shared(path, lease_seconds=0.3)
    dead = open_shared(path, lease_seconds=0.3).claim(unit(1))  # never renewed
    assert dead is not None
    claim = busy.claim(unit(0))
    assert claim is not None
    with claim:
        # Nobody calls state() here; the background thread of the only busy worker ends the dead claim.
        wait_for(lambda: states(other)["expired"] == 1, seconds=5)
        deadline = time.monotonic() + 0.8
        while time.monotonic() < deadline:
            assert other.state().pending == (unit(0),)
            time.sleep(0.02)
        threads = threading.active_count()
        assert claim.finish(1.0, {})
    wait_for(lambda: threading.active_count() == threads - 1, seconds=2)
    assert other.state().finished[0].unit == unit(0)


def test_beyond_this_machine_only_the_lease_counts(
    pair: tuple[OptunaBoard, OptunaBoard], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = pair
    gone = replace(Owner.current(), pid=2**22 + 1)  # beyond the largest process id
    for owner, at_once in ((gone, True), (replace(gone, place="another"), False), (replace(gone, place=""), False)):
        monkeypatch.setattr(one, "_owner", owner)
        assert one.claim(unit(0)) is not None
        one._held.clear()
        assert two.state().pending == (() if at_once else (unit(0),))
        clock.now += 61
        assert two.state().pending == ()
    assert two.state().expired == {unit(0): 3}


def test_the_owner_of_a_process_id(monkeypatch: pytest.MonkeyPatch) -> None:
    me = Owner.current()
    assert not me.is_gone()
    assert Owner.from_json(me.to_json()) == me
    assert replace(me, started=me.started + 1).is_gone()  # the id is another process's now
    assert not replace(me, place=f"{me.place}0", started=me.started + 1).is_gone()
    for record in (None, [], {}, {"host": 1, "place": "", "pid": 1, "started": 1}, {**me.to_json(), "more": 1}, "x"):
        assert Owner.from_json(record) is None

    def refuse(pid: int, signal: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    assert not replace(me, started=me.started + 1).is_gone()  # another user's: alive, and not ours to judge


def test_a_killed_process_is_gone_although_nobody_has_waited_for_it() -> None:
    process = subprocess.Popen(["sleep", "60"])
    found = leases._process(process.pid)
    assert found is not None
    owner = replace(Owner.current(), pid=process.pid, started=found[1])
    assert not owner.is_gone()
    process.kill()
    wait_for(owner.is_gone, seconds=5)
    os.kill(process.pid, 0)  # its entry is still there
    process.wait()
    assert owner.is_gone()


def test_a_watch_forgets_what_ended() -> None:
    clock = Clock()
    watch = LeaseWatch(clock)
    assert watch.age(1, 0) == 0
    clock.now += 5
    assert watch.age(1, 0) == 5
    watch.keep([2])
    assert watch.age(1, 0) == 0


# Claims that expired although their holder lives


def expire(pair: tuple[OptunaBoard, OptunaBoard], clock: Clock) -> Any:
    """A claim of the first worker that the second one has declared expired."""
    claim = pair[0].claim(unit(0))
    assert claim is not None
    pair[1].state()
    clock.now += 61
    assert pair[1].state().expired == {unit(0): 1}
    return claim


def test_a_late_result_counts_once_if_nobody_took_the_unit(pair: tuple[OptunaBoard, OptunaBoard], clock: Clock) -> None:
    claim = expire(pair, clock)
    assert claim.finish(2.5, {"a": 1})
    for board in pair:
        (item,) = board.state().finished
        assert (item.unit, item.value, item.details) == (unit(0), 2.5, {"a": 1})
        assert board.claim(unit(0)) is None
    assert states(pair[1]) == {"expired": 1, "COMPLETE": 1}


@pytest.mark.parametrize("finished", [False, True])
def test_a_late_result_does_not_count_if_somebody_took_it(
    pair: tuple[OptunaBoard, OptunaBoard], clock: Clock, finished: bool
) -> None:
    late = expire(pair, clock)
    claim = pair[1].claim(unit(0))
    assert claim is not None
    if finished:
        assert claim.finish(1.5, {})
    assert not late.finish(2.5, {})
    if not finished:
        assert pair[0].state().pending == (unit(0),)
        assert claim.finish(1.5, {})
    for board in pair:
        assert [(item.unit, item.value) for item in board.state().finished] == [(unit(0), 1.5)]
    assert states(pair[0])["COMPLETE"] == 1


def test_a_late_failure_is_not_counted_against_the_unit(pair: tuple[OptunaBoard, OptunaBoard], clock: Clock) -> None:
    expire(pair, clock).fail("too late")
    assert pair[1].state().failed == {}
    expire2 = pair[0].claim(unit(1))
    assert expire2 is not None
    expire2.release()
    assert pair[1].state().pending == ()


def test_finishing_and_expiring_at_once_has_one_winner(path: Path) -> None:
    """If finish() says that it counts, it does, whoever thinks at that moment that the claim has expired."""
    one, two = open_shared(path), open_shared(path)
    for index in range(8):
        claim = one.claim(unit(index))
        assert claim is not None
        barrier = threading.Barrier(2)
        counted: list[bool] = []

        def finish(claim: Any = claim, barrier: Any = barrier, counted: Any = counted, index: int = index) -> None:
            barrier.wait()
            counted.append(claim.finish(value(index), {}))

        def end(claim: Any = claim, barrier: Any = barrier, index: int = index) -> None:
            barrier.wait()
            time.sleep(0.002 * index if path.suffix == ".db" else 0.001 * index)
            two.end(claim.number, "expired")

        threads = [threading.Thread(target=target) for target in (finish, end)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert counted == [True]  # nobody else wants the unit: even a late one counts
        assert [item.value for item in two.state().finished if item.unit == unit(index)] == [value(index)]
    assert len(two.state().finished) == 8
    assert states(one)["COMPLETE"] == 8


def test_sqlite_does_not_overwrite_a_finished_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Optuna reads a trial's state and then writes it; what happens between must wait."""
    path = tmp_path / "search.db"
    path.write_bytes(empty_database())
    one, two = open_shared(path), open_shared(path)
    claim = one.claim(unit(0))
    assert claim is not None
    storage: Any = two.store.storage
    check, between = storage.check_trial_is_updatable, threading.Event()

    def slowly(trial_id: int, state: TrialState) -> None:
        check(trial_id, state)
        between.set()
        time.sleep(0.15)

    monkeypatch.setattr(storage, "check_trial_is_updatable", slowly)
    storage_end = threading.Thread(target=storage.set_trial_state_values, args=(1, TrialState.FAIL))
    storage_end.start()
    assert between.wait(10)
    assert claim.finish(2.5, {})  # the claim is declared dead before that: it counts as a late one
    storage_end.join()
    assert [item.value for item in one.state().finished] == [2.5]
    assert Counter(trial.state for trial in one._study.get_trials()) == {TrialState.FAIL: 1, TrialState.COMPLETE: 1}


# The same search again


def test_the_same_call_resumes_and_others_are_refused(path: Path) -> None:
    board = open_shared(path)
    for index in range(3):
        claim = board.claim(unit(index))
        assert claim is not None
        claim.finish(value(index), {"index": index})
    before = board.state()
    board.close()
    again = open_shared(path)
    assert again.state() == before
    changed = {**DESCRIPTION, "reference": {"sha256": "cd" * 32}, "counts": [100]}
    with pytest.raises(UserError) as error:
        OptunaBoard.open(path, "search", description=changed, axes={**AXES, "weight": (1.0, 3.0)})
    text = str(error.value)
    assert text.startswith(
        f"the search 'search' in {path} is another one (there, now): axes.weight [1.0, 4.0], [1.0, 3.0]; "
    )
    assert 'counts [100, 1000], [100]; reference.sha256 "abab' in text
    assert text.endswith("; give the same options, or another name or --storage")
    other = OptunaBoard.open(path, "another", description=changed, axes={"w": (0.0, 1.0)})
    assert other.state().finished == ()
    assert again.state() == before


def test_optunas_own_view_makes_sense(path: Path) -> None:
    board = open_shared(path)
    for index in (2, 0, 1):
        claim = board.claim(unit(index))
        assert claim is not None
        claim.finish(value(index), {"seconds": 1.5})
    storage = (
        optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))
        if path.suffix == ".jsonl"
        else f"sqlite:///{path}"
    )
    study = optuna.load_study(study_name="search", storage=storage)
    assert study.best_trial.params == unit(0).values
    assert study.best_value == value(0)
    assert study.best_trial.intermediate_values == {100: value(0)}
    assert study.best_trial.user_attrs["details"] == {"seconds": 1.5}
    assert study.best_trial.user_attrs["owner"]["pid"] == os.getpid()
    study.enqueue_trial({"weight": 2.0})  # somebody else's trials are no units
    study.ask()
    state = board.state()
    assert len(state.finished) == 3
    assert state.pending == ()


def test_a_study_of_another_program_is_refused(path: Path) -> None:
    open_shared(path).close()
    board = open_shared(path)
    foreign = optuna.create_study(study_name="mine", storage=board.store.storage)
    foreign.ask({"x": optuna.distributions.FloatDistribution(0, 1)})
    with pytest.raises(UserError, match=r"the search 'mine' in .* was not made by this program"):
        OptunaBoard.open(path, "mine", description=DESCRIPTION, axes=AXES)


def test_a_journal_cut_at_any_byte_keeps_what_was_finished_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    path = tmp_path / "search.jsonl"
    board = open_shared(path)
    sizes = []
    for index in range(3):
        claim = board.claim(unit(index))
        assert claim is not None
        claim.finish(value(index), {})
        sizes.append(path.stat().st_size)
    content = path.read_bytes()
    cut_path = tmp_path / "cut.jsonl"
    for cut in {*range(sizes[1], len(content), 11), len(content) - 1, len(content)}:
        cut_path.write_bytes(content[:cut])
        survivor = open_shared(cut_path)
        monkeypatch.setattr(Owner, "is_gone", lambda owner: True)  # whoever wrote this was killed
        state = survivor.state()
        assert [item.unit for item in state.finished[:2]] == [unit(0), unit(1)]
        assert len(state.finished) == 2 + (cut == len(content))
        assert state.pending == ()
        claim = survivor.claim(unit(2))
        assert (claim is None) == (cut == len(content))
        if claim is not None:
            assert claim.finish(value(2), {})
        assert [item.value for item in open_shared(cut_path).state().finished] == [value(i) for i in range(3)]


# Storage out of order


def broken_once(function: Callable[..., Any], done_before: bool) -> Callable[..., Any]:
    """The operation, whose first call fails: before it has done anything, or after, so that only its answer is lost."""
    failed = False

    def call(*arguments: Any, **options: Any) -> Any:
        nonlocal failed
        if failed:
            return function(*arguments, **options)
        failed = True
        if done_before:
            function(*arguments, **options)
        cause = sqlalchemy.exc.OperationalError("UPDATE", {}, Exception("server closed the connection unexpectedly"))
        raise optuna.exceptions.StorageInternalError("An exception is raised during the commit.") from cause

    return call


@pytest.mark.parametrize("done_before", [False, True])
@pytest.mark.parametrize(
    "operation",
    ["create_new_trial", "set_trial_user_attr", "set_trial_intermediate_value", "set_trial_state_values"],
)
def test_an_operation_whose_answer_is_lost(
    path: Path, operation: str, done_before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = open_shared(path)
    storage = board.store.storage
    monkeypatch.setattr(storage, operation, broken_once(getattr(storage, operation), done_before))
    claim = board.claim(unit(0))
    assert claim is not None
    assert claim.finish(2.5, {"a": 1})
    (item,) = open_shared(path).state().finished
    assert (item.unit, item.value, item.details) == (unit(0), 2.5, {"a": 1})
    twice = operation == "create_new_trial" and done_before
    assert states(board) == {"COMPLETE": 1, **({"withdrawn": 1} if twice else {})}
    assert board.state().pending == ()


def test_a_storage_that_stays_out_of_order_is_one_line(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    board = OptunaBoard.open(path, "search", description=DESCRIPTION, axes=AXES, patience_seconds=0.3)
    claim = board.claim(unit(0))
    assert claim is not None

    def down(*arguments: Any, **options: Any) -> None:
        raise sqlalchemy.exc.OperationalError("SELECT", {}, Exception("database is locked"))

    with monkeypatch.context() as patch:
        patch.setattr(board.store.storage, "set_trial_state_values", down)
        start = time.monotonic()
        with pytest.raises(UserError, match=r"^cannot use .*search\.\w+: database is locked; check"), claim:
            claim.finish(1.0, {})
        assert 0.1 < time.monotonic() - start < 5
    assert board.state().finished == ()
    wait_for(lambda: board.state().pending == (unit(0),), seconds=1)  # nobody's; its lease ends it


def test_ctrl_c_while_claiming_leaves_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    board = open_shared(path)

    def interrupted(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(board, "_decide", interrupted)
        with pytest.raises(KeyboardInterrupt):
            board.claim(unit(0))
    assert states(board) == {"released": 1}
    assert board.claim(unit(0)) is not None


def test_sqlite_waits_for_others_and_survives_a_copy(tmp_path: Path) -> None:
    assert storages._as_template("sqlite:///a{b}.db").format(SCHEMA_VERSION=12) == "sqlite:///a{b}.db"
    path = (
        tmp_path / "a{b} %20#c.db"
    )  # every sign that a URL, a template or a configuration file would take for its own
    board = open_shared(path)
    assert path.exists()
    blocker = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    blocker.execute("BEGIN IMMEDIATE")
    thread = threading.Timer(0.3, lambda: blocker.execute("COMMIT"))
    thread.start()
    claim = board.claim(unit(0))
    assert claim is not None
    claim.finish(1.0, {})
    thread.join()
    blocker.close()
    copy = tmp_path / "copy.db"
    copy.write_bytes(path.read_bytes())  # nothing lies in a second file
    assert len(open_shared(f"sqlite:///{copy}").state().finished) == 1


# Names


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("search.txt", r"--storage .*search\.txt: give FILE\.jsonl or FILE\.log"),
        ("search", "give FILE"),
        ("folder.db", "is a folder"),
        ("folder.jsonl", "is a folder"),
        ("text.db", r"cannot use .*text\.db: file is not a database"),
        ("text.jsonl", "is not the journal of a search"),
        ("text.log/inside.db", "cannot create the folder"),
        ("what?.db", r"no '\?' in a file's name"),
        ("sqlite://", "a search in memory needs no storage"),
        ("mysql://u:geheim@h/d", r"--storage mysql://…: give"),
        ("redis://:geheim@h/0", r"--storage redis://…: give"),
        ("postgresql://u:geheim@h:port/d", r"--storage postgresql://… is not a valid address"),
        ("postgresql+nothing://u:geheim@h/d", r"driver is not installed; run `pip install 'psycopg\[binary\]'`"),
    ],
)
def test_names_that_cannot_be_used(tmp_path: Path, name: str, message: str) -> None:
    for folder in ("folder.db", "folder.jsonl"):
        (tmp_path / folder).mkdir()
    for file in ("text.db", "text.jsonl", "text.log"):
        (tmp_path / file).write_text("this is not what its name says\n" * 100)
    with pytest.raises(UserError, match=message) as error:
        open_shared(name if "://" in name else tmp_path / name)
    assert "geheim" not in str(error.value)
    assert "\n" not in str(error.value)
    assert (tmp_path / "text.db").read_text().startswith("this is")


def test_passwords_are_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the database's driver says of them. (A driver that is installed everywhere stands in for PostgreSQL's.)"""
    seen = []

    def refuse(url: str, **options: Any) -> None:
        seen.append(url)
        raise sqlalchemy.exc.OperationalError("", {}, Exception(f"cannot reach {url} with ge/heim% or second"))

    monkeypatch.setattr(storages, "RDBStorage", refuse)
    with pytest.raises(UserError) as error:
        open_shared("postgresql://me:ge%2Fheim%25@db.example:5433/search?sslpassword=second")
    text = str(error.value)
    assert text.startswith("cannot use postgresql://db.example:5433/search: cannot reach ")
    assert not any(secret in text for secret in ("heim", "second"))
    assert seen == ["postgresql+psycopg://me:ge%2Fheim%25@db.example:5433/search?sslpassword=second"]


def test_optunas_remarks_are_off_and_its_level_is_put_back(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.INFO)
    optuna.logging.enable_propagation()
    try:
        with caplog.at_level(logging.INFO):
            board = open_shared(path)
            claim = board.claim(unit(0))
            assert claim is not None
            claim.finish(1.0, {})
            open_shared(path)
        assert optuna.logging.get_verbosity() == optuna.logging.INFO
        assert [record.getMessage() for record in caplog.records if record.name.startswith("optuna")] == []
    finally:
        optuna.logging.disable_propagation()
        optuna.logging.set_verbosity(before)


def test_journals_lock_trouble_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno
    import fcntl

    def unsupported(handle: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with pytest.raises(UserError, match="lies on a file system without file locks; choose another, or a database"):
        open_shared(tmp_path / "search.jsonl")
    assert TornJournal(tmp_path / "search.jsonl").read_logs(0) == []
