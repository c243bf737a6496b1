"""The processes of one training run: who they are, how they add up gradients, and how they agree.

Under torchrun every process holds the whole network, computes the gradient of its slice of the batch, and all receive
the sum. That is one `all_reduce` of one flat buffer per step instead of DistributedDataParallel: accumulation rounds
need no special case, the sum does not depend on a bucket layout, and a non-finite value in any process's slice
reaches the gradient of all of them, so all skip the same steps without another message. What DDP would gain,
communication during the backward pass, is a few milliseconds per step at these sizes.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from autoguidance.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class World:
    """This process among those of the run."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run folder."""
        return self.rank == 0

    def sum_(self, tensor: Tensor) -> None:
        """Replace `tensor` by its sum over all processes; every process gets the same bits."""
        if self.size > 1:
            dist.all_reduce(tensor)

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.size > 1:
            dist.barrier()

    def broadcast_(self, tensors: list[Tensor]) -> None:
        """Give every process the main one's tensors."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def from_main(self, function: Callable[[], T]) -> T:
        """Call `function` in the main process only; every process gets its result, or raises its UserError."""
        if self.size == 1:
            return function()
        outcome: list[object] = [None, None]
        if self.is_main:
            try:
                outcome[0] = function()
            except UserError as error:
                outcome[1] = str(error)
        dist.broadcast_object_list(outcome, src=0)
        if outcome[1] is not None:
            raise UserError(str(outcome[1]))
        return outcome[0]  # type: ignore[return-value]


def choose_device(name: str | torch.device | None = None) -> torch.device:
    """The device to train on: the named one, else this process's GPU, else the CPU.

    Raises UserError where the name is not known or the machine lacks that device.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if name is None or name == "auto":
        return torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device {str(name)!r} is not known; use cpu, cuda or cuda:N") from None
    if device.type == "cuda":
        if device.index is None:
            device = torch.device("cuda", local_rank)
        if not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count():
            raise UserError(
                f"device {device} is not there (this machine has {torch.cuda.device_count()} GPUs); use --device cpu"
            )
    elif device.type != "cpu":
        raise UserError(f"device {device} is not supported for training; use cpu or cuda")
    return device


@contextmanager
def join_world(device: str | torch.device | None = None) -> Iterator[World]:
    """This process's `World`: of torchrun's processes (nccl on GPUs, gloo on CPUs), or alone.

    A process group that the caller has initialised is used and left as it is.
    """
    place = choose_device(device)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    ours = not dist.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) > 1
    if ours:
        dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
    try:
        several = dist.is_initialized()
        rank, size = (dist.get_rank(), dist.get_world_size()) if several else (0, 1)
        yield World(rank=rank, size=size, device=place)
    finally:
        if ours:
            dist.destroy_process_group()
