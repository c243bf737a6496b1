"""Processes that train or measure: how they start, and that they end with the command that started them.

Most of a short job would be spent importing torch (3 s on a CPU core, and again in every process). Where the system has
it, the processes are forked from a server that has imported it once and has done nothing else: no thread of torch or
CUDA has begun there. Elsewhere, and for a GPU, whose driver must not be inherited, each starts from nothing.
"""

import multiprocessing
import os
import threading
from collections.abc import Mapping
from multiprocessing.connection import wait as wait_for_any
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext, SpawnContext

# torch._dynamo: the optimizer imports it, 1.3 s.
_PRELOADED = ["torch._dynamo", "autoguidance.tune.measuring", "autoguidance.train.loop"]


def worker_context(device: torch.device | str) -> "ForkServerContext | SpawnContext":
    """What starts processes that work on this device; each must call `begin_worker` first."""
    if torch.device(device).type == "cpu" and "forkserver" in multiprocessing.get_all_start_methods():
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_PRELOADED)  # only before the first process
        return context
    return multiprocessing.get_context("spawn")


def begin_worker(environment: Mapping[str, str]) -> None:
    """Take on the parent's environment as it was when the process was asked for, and end with the parent.

    Args:
        environment: `dict(os.environ)` of the parent; a fork server keeps that of its own beginning.
    """
    os.environ.clear()
    os.environ.update(environment)
    end_with_parent()


def end_with_parent() -> None:
    """End this process when the one that started it is gone (a killed command must leave nothing running).

    Not by `os.getppid`: a parent that was killed while this process was starting has been replaced already, and a
    process may have been forked by a server.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None, "only a process that multiprocessing started has such a parent"

    def watch() -> None:
        wait_for_any([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
