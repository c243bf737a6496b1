"""What the tests of boards share."""

import multiprocessing
from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture(scope="session")
def start() -> Callable[..., Any]:
    """Starts a function in a process of its own. The modules are imported once, by the server that the processes fork from."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["board_workers", "autoguidance.tune.optuna_board"])

    def begin(function: Callable[..., None], *arguments: Any) -> Any:
        process = context.Process(target=function, args=arguments, daemon=True)
        process.start()
        return process

    return begin
