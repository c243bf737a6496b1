"""Workers of a shared search, for tests: functions that run in processes of their own and may be killed at any time."""

import functools
import os
import tempfile
import time
from pathlib import Path

from autoguidance.tune.board import Unit
from autoguidance.tune.optuna_board import OptunaBoard
from autoguidance.tune.storages import open_store

AXES = {"weight": (1.0, 4.0), "guide": ("runs/main:8448", "runs/guide:16384")}
DESCRIPTION = {"reference": {"sha256": "ab" * 32}, "features": "pixels", "counts": [100, 1000]}


def unit(index: int) -> Unit:
    """The index-th unit; all differ."""
    guide = AXES["guide"][index % 2]
    return Unit.of({"weight": 1.0 + 0.01 * index, "guide": guide}, first_seed=5_000_000, num_images=100)


def value(index: int) -> float:
    """What measuring it gives."""
    return 3.0 + 0.1 * index


def open_shared(path: Path | str, **options: float) -> OptunaBoard:
    """The board that all workers share."""
    return OptunaBoard.open(path, "search", description=DESCRIPTION, axes=AXES, **options)  # pyright: ignore


@functools.cache
def empty_database() -> bytes:
    """An SQLite file with Optuna's tables and no study: making one takes a second, copying it does not."""
    with tempfile.TemporaryDirectory() as folder:
        open_store(Path(folder) / "empty.db").close()
        return (Path(folder) / "empty.db").read_bytes()


def work(path: str, num_units: int, seconds: float, noted: str, go: str) -> None:
    """Claim and finish units, all workers in the same order, until all are finished. What counted is noted, line by line."""
    board = open_shared(path)
    Path(f"{go}.{os.getpid()}").touch()
    while not Path(go).exists():
        time.sleep(0.001)
    while True:
        state = board.state()
        done = {item.unit for item in state.finished}
        left = [index for index in range(num_units) if unit(index) not in done]
        if not left:
            break
        # The first one, although somebody may hold it: claims are to collide.
        claims = ((index, board.claim(unit(index))) for index in left)
        index, claim = next(((index, claim) for index, claim in claims if claim is not None), (0, None))
        if claim is None:
            time.sleep(0.005)
            continue
        with claim:
            time.sleep(seconds)
            if claim.finish(value(index), {"pid": os.getpid()}):
                note(noted, f"{index} {os.getpid()}")
    board.close()


def hold(path: str, index: int, noted: str) -> None:
    """Claim one unit and never let go."""
    claim = open_shared(path).claim(unit(index))
    assert claim is not None
    with claim:
        note(noted, "held")
        time.sleep(600)


def append(path: str, lines: int) -> None:
    """Append numbered records to a journal as fast as can be."""
    from autoguidance.tune.journal import TornJournal

    journal = TornJournal(path)
    for number in range(lines):
        journal.append_logs([{"op_code": 8, "worker_id": str(os.getpid()), "number": number, "filling": "x" * 300}])


def note(path: str, text: str) -> None:
    """Append a line in one operation."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(handle, f"{text}\n".encode())
    os.close(handle)
