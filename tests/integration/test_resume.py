"""A training process killed at any moment goes on by the same call and ends with the same bits."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from autoguidance.storage import read_json, read_json_lines

# Checkpoints after every step and many snapshots: most of the time a kill hits some write.
_SCRIPT = """
import sys, torch
torch.set_num_threads(1)
from autoguidance.data.open import open_data
from autoguidance.train.config import NetworkConfig, TrainConfig
from autoguidance.train.loop import train
network = NetworkConfig(model_channels=4, channel_mult=(1, 2), num_blocks=1, attn_resolutions=(), channels_per_head=4)
config = TrainConfig(
    network=network, num_images=400, batch_size=8, num_snapshots=25, log_images=16, checkpoint_seconds=0.0
)
result = train(config, open_data(sys.argv[2]), sys.argv[1])
print(result.resumed_from)
"""


def _start(out: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", _SCRIPT, str(out), str(out.parent / "data.npz")]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def _wait_for(out: Path, num_records: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while len(read_json_lines(out / "log.jsonl")) < num_records:
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.slow
def test_killed_anywhere_it_ends_with_the_same_bits(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (30, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", images=images, labels=np.arange(30) % 3)
    whole = _start(tmp_path / "whole")
    killed = tmp_path / "killed"
    for num_records, delay in ((3, 0.0), (14, 0.013)):
        process = _start(killed)
        _wait_for(killed, num_records, process)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    last = _start(killed)
    printed, _ = last.communicate(timeout=120)
    assert last.returncode == 0
    assert int(printed) > 0
    assert whole.wait(timeout=120) == 0
    one, other = (read_json(folder / "manifest.json")["files"] for folder in (tmp_path / "whole", killed))
    assert {name: digest for name, digest in one.items() if name.startswith("snapshots/")} == {
        name: digest for name, digest in other.items() if name.startswith("snapshots/")
    }
    for folder in (tmp_path / "whole", killed):
        assert [record["images"] for record in read_json_lines(folder / "log.jsonl")] == list(range(16, 401, 16))
        assert not list(folder.rglob("*.tmp"))
    losses = [
        [record["loss"] for record in read_json_lines(folder / "log.jsonl")] for folder in (tmp_path / "whole", killed)
    ]
    assert losses[0] == losses[1]
