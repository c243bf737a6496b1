"""Long work in named stages: who shows them, and how long each took over all calls that worked on it."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from autoguidance.storage import read_json, write_json

ProgressCallback = Callable[[int, int, dict[str, Any]], None]
Stage = Callable[[str], AbstractContextManager[ProgressCallback | None]]


def silent(title: str) -> AbstractContextManager[None]:
    """A stage that nobody watches."""
    return nullcontext()


class Stages:
    """The stages of one output folder.

    Args:
        out: the folder; times are kept in its seconds.json.
        show: given a stage's title, a context manager that yields a progress callback.

    Attributes:
        seconds: per stage, of all calls so far.
    """

    def __init__(self, out: Path, show: Stage = silent) -> None:
        self._path = out / "seconds.json"
        self._show = show
        self.seconds: dict[str, float] = read_json(self._path) if self._path.exists() else {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[ProgressCallback | None]:
        """Show a stage, and add its time to what earlier, interrupted calls spent on it."""
        start, before = time.monotonic(), self.seconds.get(name, 0.0)
        try:
            with self._show(name) as progress:
                yield progress
        finally:
            self.seconds[name] = before + time.monotonic() - start
            write_json(self._path, self.seconds)
