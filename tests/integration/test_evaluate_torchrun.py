"""Two processes under torchrun (gloo) measure the same as one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from autoguidance.data import open_data

# Only the verb under test, and one thread: two processes share the cores of the machine.
_COMMAND = """
import sys, torch
import autoguidance.cli as cli
torch.set_num_threads(1)
cli.VERBS = ("evaluate", "report")
sys.exit(cli.main())
"""


def _run(folder: Path, processes: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    # Without "--" torchrun takes our --num for an abbreviation of its own --numa-binding.
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "--"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "AUTOGUIDANCE_CACHE": str(folder / f"cache-{processes}")}
    command = [sys.executable, *(launcher if processes > 1 else []), "command.py", "evaluate", *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240, check=False
    )


@pytest.mark.slow
def test_two_processes_measure_the_same(tmp_path: Path) -> None:
    (tmp_path / "command.py").write_text(_COMMAND)
    digits = open_data("digits")
    np.savez(tmp_path / "images.npz", images=digits.read(range(701)).numpy(), seeds=np.arange(701))
    np.savez(tmp_path / "real.npz", images=digits.read(range(1100)).numpy(), labels=digits.class_idx[:1100] % 2)
    measure = ["images.npz", "--ref", "real.npz", "--features", "classifier,pixels", "--metrics", "fd,kid,prdc"]
    measure += ["--repeats", "2", "--num", "333", "--device", "cpu", "--classifier", "classifier.safetensors"]
    results = []
    for processes in (2, 1):  # two at first: one of them trains the classifier, for both
        done = _run(tmp_path, processes, *measure, "--out", f"{processes}.json")
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("Fréchet distance (classifier)") == 1  # the first process alone speaks
        results.append(json.loads((tmp_path / f"{processes}.json").read_text()))
    two, one = (result["rows"][0]["features"] for result in results)
    for network in ("classifier", "pixels"):
        for name in ("fd", "kid", "precision", "recall", "density", "coverage"):
            key = f"{name}_repeats"
            assert two[network][key] == pytest.approx(one[network][key], abs=1e-6, rel=0), (network, name)
    assert results[0]["protocol"] == results[1]["protocol"]
    again = _run(tmp_path, 2, *measure, "--out", "again.json")  # all from the cache
    assert again.returncode == 0, again.stderr
    assert json.loads((tmp_path / "again.json").read_text())["rows"] == results[0]["rows"]

    refused = _run(tmp_path, 2, *measure, "--num", "900")
    assert refused.returncode != 0
    assert "2 x 900 images are needed and 701" in refused.stderr
