"""Memory of post-hoc averages: one network per width and one more, whatever the number of snapshots."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from edm2_files import write_network

from autoguidance.ema import snapshot_name
from autoguidance.models import ModelInfo, build_model, save_model

TENSORS, ELEMENTS = 20, 131_072  # 10 MB in float32

PROGRAM = """
import json, sys
import torch
from autoguidance.zoo.posthoc import plan_averages
from autoguidance.zoo.posthoc_write import write_averages

torch.set_num_threads(1)

def status(name):
    with open("/proc/self/status") as file:
        return 1024 * next(int(line.split()[1]) for line in file if line.startswith(name))

source, out, count, warm = sys.argv[1:]
write_averages(plan_averages(warm, [0.07]), out + "-warm")  # what libraries allocate once
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak is what is there now
start = status("VmRSS")
plan = plan_averages(source, [0.03 + 0.01 * k + 0.001 for k in range(int(count))])
write_averages(plan, out, save_seconds=0)
print(json.dumps({"peak": status("VmHWM") - start, "snapshots": len(plan.snapshots)}))
"""


def write_folder(folder: Path, times: int, elements: int, dtype: torch.dtype) -> Path:
    """A folder of 2 x times snapshots, all links to one file: what counts here is their number and size."""
    first = folder / "first"
    state = {f"w{k}": torch.full((elements,), 0.5 + k) for k in range(TENSORS)}
    save_model(first, state, ModelInfo(config={}, num_images=1, ema_std=0.05), dtype)
    for step in range(1, times + 1):
        for std in (0.05, 0.1):
            (folder / snapshot_name(step * 1024, std)).hardlink_to(first)
    first.unlink()
    return folder


def write_published_folder(folder: Path, times: int, width: int) -> int:
    """The same of published snapshots; returns the bytes of one network in float32."""
    config = {
        "img_resolution": 32,
        "img_channels": 3,
        "label_dim": 10,
        "model_channels": width,
        "channel_mult": [1, 2, 3],
        "num_blocks": 2,
        "attn_resolutions": [8],
        "channels_per_head": 16,
    }
    state = build_model(config).state_dict()
    first = write_network(folder / "first", config, state)
    for step in range(1, times + 1):
        for std in (0.05, 0.1):
            (folder / f"network-snapshot-{step * 2**25 // 1000:07d}-{std:.3f}.pkl").hardlink_to(first)
    first.unlink()
    return 4 * sum(value.numel() for value in state.values())


def peak_networks(source: Path, warm: Path, out: Path, count: int, network: int) -> tuple[float, int]:
    """Growth of resident memory at its peak, in networks, and the number of snapshots."""
    arguments = [str(source), str(out), str(count), str(warm)]
    child = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    result = json.loads(child.stdout)
    return result["peak"] / network, result["snapshots"]


on_linux = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads /proc of Linux")


@on_linux
@pytest.mark.parametrize(("times", "count", "dtype"), [(4, 4, "float32"), (20, 4, "float32"), (20, 12, "float16")])
def test_peak_memory(tmp_path: Path, times: int, count: int, dtype: str) -> None:
    for name in ("raw", "warm"):
        (tmp_path / name).mkdir()
    source = write_folder(tmp_path / "raw", times, ELEMENTS, getattr(torch, dtype))
    warm = write_folder(tmp_path / "warm", 2, 64, getattr(torch, dtype))
    networks, found = peak_networks(source, warm, tmp_path / "out", count, 4 * TENSORS * ELEMENTS)
    assert found == 2 * times
    # Freed tensors do not all go back to the system: half a network and a fragment per width (seen: 0.7 networks with 12 widths
    # on a busy machine). A copy per width or per snapshot would be 4 networks at least with 4 widths, 12 with 12.
    slack = 1 + count / 12
    assert count - 0.5 < networks < count + 1 + slack, f"{networks:.2f} networks for {count} widths"


@on_linux
def test_peak_memory_of_published_snapshots(tmp_path: Path) -> None:
    for name in ("raw", "warm"):
        (tmp_path / name).mkdir()
    write_published_folder(tmp_path / "warm", 2, 16)
    network = write_published_folder(tmp_path / "raw", 8, 32)
    networks, found = peak_networks(tmp_path / "raw", tmp_path / "warm", tmp_path / "out", 4, network)
    assert found == 16
    assert 3.5 < networks < 5.2, f"{networks:.2f} networks for 4 widths"  # 0.2: the pickle's tree of records
