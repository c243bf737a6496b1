"""Several processes measure one thing: who takes which part, and how the parts come together.

Images, subsets and rows of a distance matrix are split into one contiguous part per process; the parts are put
together in the order of the processes, so that the whole does not depend on who finished first. What travels is small
(sums, radii, decisions) but for features that a metric has to see at once: n d float32 numbers, 400 MB for 50,000 x
2048, which every process holds once.

The processes are those of `torch.distributed` where it is initialised (torchrun), or this one alone.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from autoguidance.errors import UserError

T = TypeVar("T")


class Processes:
    """This process among those that measure together.

    Attributes:
        rank, size: this one's number, 0 to size - 1.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        if not 0 <= rank < size:
            raise ValueError(f"process {rank} of {size} does not exist")
        self.rank = rank
        self.size = size

    @classmethod
    def current(cls) -> "Processes":
        """Those of `torch.distributed`; alone where it is not initialised."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    def part(self, num: int) -> range:
        """This process's share of 0 .. num - 1; the shares of all are disjoint, in order, and differ by one at most."""
        return range(num * self.rank // self.size, num * (self.rank + 1) // self.size)

    def gather(self, value: T) -> list[T]:
        """Everybody's value, in the order of the processes. All must call it."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)  # pickles, but only what our own processes made
        return values

    def together(self, function: Callable[[], T]) -> T:
        """Call `function` in every process; each gets its own result, or all raise the first one's UserError.

        Without this a mistake that one process sees (an image that cannot be read) would leave the others waiting.
        """
        result: T | None = None
        message: str | None = None
        try:
            result = function()
        except UserError as error:
            if self.size == 1:
                raise
            message = str(error)
        messages = [text for text in self.gather(message) if text is not None]
        if messages:
            raise UserError(messages[0])
        return result  # type: ignore[return-value]

    def from_first(self, function: Callable[[], T]) -> T:
        """Call `function` in the first process only; every process gets its result, or raises its UserError."""
        return self.gather(self.together(lambda: function() if self.rank == 0 else None))[0]  # type: ignore[return-value]
