"""Keep workers busy: ask the policy, claim on the board, measure, tell; until nothing is left.

Several drivers, in one process or on several machines, may share a board; each keeps its own workers busy and sees what
the others finish.
"""

import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, wait
from dataclasses import asdict
from typing import Any

from autoguidance.errors import NotFiniteError, UserError
from autoguidance.tune.board import Board, Claim, State, Unit
from autoguidance.tune.measuring import Measurer, Pending, Task

Ask = Callable[[State], Unit | None]
Finish = Callable[[Unit, float, dict[str, Any]], None]


def drive(
    board: Board,
    ask: Ask,
    pool: Measurer,
    task: Callable[[Unit], Task],
    *,
    finished: Finish | None = None,
    seen: Callable[[State], None] | None = None,
    poll_seconds: float = 1.0,
) -> State:
    """Measure what `ask` wants, with all workers of the pool, until it wants nothing more and nobody is measuring.

    Args:
        board: who measures what, and what came out.
        ask: what to measure next, given the state; None: nothing for now.
        pool: workers of this process.
        task: the measurement of a unit.
        finished: called with (unit, distance, details) of each measurement made here, once it is on the board.
        seen: called with the state, whenever it is read.
        poll_seconds: how often to look what others have finished.

    Returns: the last state.
    Raises: UserError where a measurement fails for another reason than a result that is not finite; KeyboardInterrupt. What is under
        way is then given back.
    """
    running: dict[Pending, Claim] = {}
    try:
        while True:
            state = board.state()
            if seen is not None:
                seen(state)
            while len(running) < pool.num_processes:
                unit = ask(state)
                if unit is None:
                    break
                claim = board.claim(unit)
                if claim is not None:
                    running[pool.submit(task(unit))] = claim
                state = board.state()
            if not running:
                if not state.pending:
                    return state
                time.sleep(poll_seconds)
                continue
            done, _ = wait(running, timeout=poll_seconds if state.pending else None, return_when=FIRST_COMPLETED)
            for future in done:
                claim = running.pop(future)
                _tell(claim, pool, future, finished)
    finally:
        for claim in running.values():
            claim.release()


def _tell(claim: Claim, pool: Measurer, future: Pending, finished: Finish | None) -> None:
    try:
        measured = pool.result(future)
    except NotFiniteError as error:  # this setting cannot be measured; others can
        claim.fail(str(error))
        return
    except UserError:
        claim.release()
        raise
    details = asdict(measured)
    if claim.finish(measured.fd, details) and finished is not None:
        finished(claim.unit, measured.fd, details)
