"""Processes that work end with the command that started them, and see its environment as it is when they start."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from autoguidance.tune import worker_context

_LOOK = """
import os
from autoguidance.tune import begin_worker, worker_context

def look(environment):
    begin_worker(environment)
    print(os.environ.get("WORKER_TEST"), flush=True)

if __name__ == "__main__":
    for value in ("first", "second"):  # the second process comes from a server that began with the first
        os.environ["WORKER_TEST"] = value
        process = worker_context("cpu").Process(target=look, args=(dict(os.environ),))
        process.start()
        process.join()
"""


def test_environment_is_the_parents_of_now(tmp_path: Path) -> None:
    script = tmp_path / "look.py"
    script.write_text(_LOOK)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=50, check=False)
    assert done.stdout.split() == ["first", "second"], done.stderr


def test_a_gpus_driver_is_not_inherited() -> None:
    assert worker_context("cuda").get_start_method() == "spawn"


_ORPHAN = """
import os, sys, time
from autoguidance.tune import begin_worker, worker_context

def child(delay, environment):
    time.sleep(delay)  # its parent is killed meanwhile
    begin_worker(environment)
    time.sleep(60)

if __name__ == "__main__":
    process = worker_context(sys.argv[2]).Process(target=child, args=(float(sys.argv[1]), dict(os.environ)))
    process.start()
    print(process.pid, flush=True)
    time.sleep(3)
    os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize(("device", "delay"), [("cpu", 0.0), ("cpu", 6.0), ("cuda", 0.0)])
def test_a_worker_ends_with_a_killed_parent_even_while_it_is_starting(
    tmp_path: Path, device: str, delay: float
) -> None:
    script = tmp_path / "orphan.py"
    script.write_text(_ORPHAN)
    # The pipe stays open as long as any of the two lives.
    begun = time.monotonic()
    done = subprocess.run([sys.executable, str(script), str(delay), device], capture_output=True, text=True, timeout=50)
    assert done.returncode == -9
    assert time.monotonic() - begun < 45
