"""Two processes under torchrun (gloo) train the same network as one."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from autoguidance.models.files import read_weights
from autoguidance.storage import read_json_lines

_COMMON = ["--preset", "nano", "--images", "256", "--batch", "32", "--device", "cpu"]
_SETTINGS = ["--set", "log_images=32", "--set", "num_snapshots=1", "--set", "label_dropout=0.1"]
# Only the verb under test, and one thread: two processes share the cores of the machine.
_COMMAND = """
import sys, torch
import autoguidance.cli as cli
torch.set_num_threads(1)
cli.VERBS = ("train", "report")
sys.exit(cli.main())
"""


def _run(arguments: list[str], script: Path, processes: int) -> subprocess.CompletedProcess[str]:
    launcher = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, str(script), "train", str(script.parent / "data.npz"), *_COMMON, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)


@pytest.mark.slow
def test_two_processes_train_the_same_network(tmp_path: Path) -> None:
    script = tmp_path / "command.py"
    script.write_text(_COMMAND)
    images = np.random.default_rng(0).integers(0, 256, (50, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", images=images, labels=np.arange(50) % 5)
    for name, processes, extra in (("one", 1, []), ("two", 2, ["--set", "micro_batch=8"])):
        # Two processes of two rounds each, so both ways to split a batch are compared with the whole batch at once.
        done = _run(["--out", str(tmp_path / name), *_SETTINGS, *extra], script, processes)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("is trained") == 1  # the main process alone speaks
    one, two = (read_json_lines(tmp_path / name / "log.jsonl") for name in ("one", "two"))
    assert [record["images"] for record in one] == [record["images"] for record in two] == list(range(32, 257, 32))
    for a, b in zip(one, two, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3)
    last = "snapshots/00000000256-0.050.safetensors"
    weights, others = (read_weights(tmp_path / name / last) for name in ("one", "two"))
    for name, weight in weights.items():
        assert (weight - others[name]).abs().max() <= 2e-3 * weight.abs().max(), name

    refused = _run(["--out", str(tmp_path / "two"), *_SETTINGS, "--seed", "9"], script, 2)
    assert refused.returncode != 0
    assert "seed: 0, 9" in refused.stderr
