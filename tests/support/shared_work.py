"""Several `Processes` as threads of one process: the same splitting and gathering, without starting anything."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from autoguidance.evaluate.processes import Processes


class _Thread(Processes):
    def __init__(self, rank: int, size: int, barrier: threading.Barrier, board: list[Any]) -> None:
        super().__init__(rank, size)
        self._barrier, self._board = barrier, board

    def gather(self, value: Any) -> list[Any]:
        self._board[self.rank] = value
        self._barrier.wait(timeout=60)
        values = list(self._board)
        self._barrier.wait(timeout=60)
        return values


def shared(size: int, function: Callable[[Processes], Any]) -> list[Any]:
    """Results of `function(processes)` in each of `size` processes."""
    barrier, board = threading.Barrier(size), [None] * size

    def work(rank: int) -> Any:
        try:
            return function(_Thread(rank, size, barrier, board))
        except threading.BrokenBarrierError:
            raise
        except BaseException:
            barrier.abort()  # the others must not wait for this one
            raise

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(work, range(size)))
