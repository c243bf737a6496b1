"""Where the golden values and the shared data lie, and how much of the machine a test may take."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

SHARED = Path(__file__).resolve().parents[2] / "shared"

# Bitwise comparisons need a fixed thread count, and the workers of pytest-xdist share the cores.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Callable[[str], Path]:
    """Path of a file in ../shared; skips where it is absent (users do not have it, CI does)."""

    def path(name: str) -> Path:
        if not (SHARED / name).exists():
            pytest.skip(f"needs ../shared/{name}, which is not distributed with the project")
        return SHARED / name

    return path


@pytest.fixture(scope="session")
def golden(shared: Callable[[str], Path]) -> Callable[[str], Path]:
    """Path of a golden file: numbers from the reference program (../shared/golden/README.md)."""
    return lambda name: shared(f"golden/{name}")


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Downloads, classifiers and features of the tests stay out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOGUIDANCE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests come last, so that a lack of time costs those and no other."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """TESTS_SLOW_UNTIL (seconds since 1970) is set where there is a limit (.ci/run): no slow test begins after it."""
    until = os.environ.get("TESTS_SLOW_UNTIL")
    if until and item.get_closest_marker("slow") is not None and time.time() > float(until):
        pytest.skip("no time is left for slow tests on this machine (TESTS_SLOW_UNTIL)")
