"""`autoguidance run`: from images to results, pair and report; killed in the middle, the same command goes on."""

import json
import lzma
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autoguidance.cli import main
from autoguidance.data import open_data
from autoguidance.sample import Heun
from autoguidance.storage import read_json, read_json_lines
from autoguidance.study.comparison import IMAGES_KEPT
from autoguidance.study.run import SEARCH_SEEDS
from autoguidance.zoo import Pair

METHODS = ["unguided", "cfg", "cfg+interval", "autoguidance"]
TITLES = {"unguided": "Unguided", "cfg": "CFG", "cfg+interval": "CFG + interval", "autoguidance": "Autoguidance"}
ROW = {
    "method",
    "main",
    "guide",
    "weight",
    "interval",
    "fd",
    "fd_std",
    "fd_repeats",
    "evaluations_main",
    "evaluations_guide",
    "seconds_per_image",
}


STEPS = 4
# The short runs of the tests: a few steps of the sampler and the fewest images that a search may have.
SHORT = f"""
import sys
from autoguidance.cli import main
from autoguidance.sample import Heun
from autoguidance.study import plan
if __name__ == "__main__":
    plan.SOLVERS, plan._LEAST_IMAGES = (Heun(num_steps={STEPS}),), 128
    sys.exit(main())
"""


def options(data: str, out: Path, minutes: float = 0.2) -> list[str]:
    """A short run on two CPU processes."""
    given = f"--minutes {minutes} --preset tiny --device cpu --processes 2"
    return ["run", data, "--out", str(out), *given.split()]


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Begins `autoguidance run DATA` in a process of its own, which does not outlive the test."""
    processes: list[subprocess.Popen[str]] = []

    def begin(data: str, out: Path) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", SHORT, *options(data, out)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        pipe = subprocess.PIPE
        processes.append(subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True))
        return processes[-1]

    yield begin
    for process in processes:
        if process.poll() is None:
            process.kill()
            process.communicate()


def finish(process: "subprocess.Popen[str]") -> str:
    stdout, stderr = process.communicate(timeout=900)
    assert process.returncode == 0, stderr
    return stdout


def kill_when(process: "subprocess.Popen[str]", ready: Callable[[], bool]) -> None:
    """SIGKILL as soon as `ready`; fails where the process ends before."""
    deadline = time.monotonic() + 600
    while not ready():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    time.sleep(1.5)  # its workers look for their parent twice a second


def records(path: Path) -> list[dict[str, Any]]:
    return read_json_lines(path)


def key(record: dict[str, Any]) -> str:
    names = ("method", "main", "guide", "weight", "interval", "first_seed", "num_images")
    return json.dumps([record[name] for name in names])


def setting_of(record: dict[str, Any]) -> str:
    return json.dumps([record[name] for name in ("main", "guide", "weight", "interval")])


def check_results(out: Path, methods: list[str]) -> dict[str, Any]:
    """The schema of results.json (interface.md), and that it says what the journals and files say."""
    results = read_json(out / "results.json")
    protocol, rows, search = results["protocol"], results["rows"], results["search"]
    assert [row["method"] for row in rows] == methods
    repeats, count = protocol["repeats"], protocol["num_images"]
    assert repeats >= 3
    assert protocol["solver"] == Heun(num_steps=STEPS).describe()
    assert protocol["seeds"] == [f"{r * count}-{(r + 1) * count - 1}" for r in range(repeats)]
    assert len(protocol["features_sha256"]) == len(protocol["reference_sha256"]) == 64

    compared = records(out / "compare.jsonl")
    assert len(compared) == repeats * len(methods)
    assert max(Counter(map(key, compared)).values()) == 1
    assert max(Counter(map(key, search)).values()) == 1
    assert search == records(out / "search.jsonl")
    assert all(record["first_seed"] >= SEARCH_SEEDS for record in search)  # never the seeds that are reported
    assert {record["first_seed"] for record in compared} == {r * count for r in range(repeats)}

    steps = 2 * STEPS - 1
    for row in rows:
        assert row.keys() >= ROW
        mine = [r["fd"] for r in compared if r["method"] == row["method"]]
        assert sorted(row["fd_repeats"]) == sorted(mine)
        assert row["fd"] == pytest.approx(np.mean(mine))
        assert row["fd_std"] == pytest.approx(np.std(mine, ddof=1))
        assert row["evaluations_main"] == steps
        if row["method"] == "unguided":
            assert (row["guide"], row["evaluations_guide"]) == (None, 0)
        elif row["method"] == "cfg+interval":
            low, high = row["interval"]
            assert 0 <= low < high
            assert 0 < row["evaluations_guide"] <= steps
        else:
            assert row["interval"] is None
            assert row["evaluations_guide"] == steps
        # The setting was measured on the search's full count, and was the best of its method there or nearly (the surrogate decides).
        full = max(r["num_images"] for r in search)
        tried = {setting_of(r): r["fd"] for r in search if r["method"] == row["method"] and r["num_images"] == full}
        assert tried[setting_of(row)] <= 1.3 * min(tried.values())
        kept = np.load(out / "images" / f"{row['method']}.npz")
        assert kept["seeds"].tolist() == list(range(min(IMAGES_KEPT, count)))  # equal seeds, side by side
    # Guided methods could be the weaker ones in so short a run, but every one is measured.
    assert all(np.isfinite(row["fd"]) and row["fd"] > 0 for row in rows)

    report = (out / "report.html").read_text()
    assert report.lstrip().lower().startswith("<!doctype html")
    table = report[report.index("<table") : report.index("</table>")]
    assert [method for method in METHODS if f"</span>{TITLES[method]}<" in table] == methods
    assert results["baseline"]["real_half"] > 0
    pair = Pair.load(out / "pair.json")
    (row,) = [row for row in rows if row["method"] == "autoguidance"]
    assert (pair.method, pair.weight) == ("autoguidance", row["weight"])
    assert pair.measurement["row"] == row
    assert Path(pair.main).as_posix() == (out / row["main"]).resolve().as_posix()
    return results


def check_generates(out: Path, resolution: int) -> None:
    target = out.parent / "samples"
    options = ["--seeds", "0-3", "--steps", "4", "--format", "npz", "--device", "cpu", "--out", str(target)]
    assert main(["generate", "--pair", str(out / "pair.json"), *options]) == 0
    images = np.load(target / "images.npz")["images"]
    assert images.shape == (4, 1, resolution, resolution)
    assert images.std() > 0


@pytest.mark.slow
def test_run_killed_twice_goes_on_and_a_finished_one_is_quick(
    start: Start, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # Without labels there is no classifier to train first (20 s), and no CFG.
    data, out, methods = str(tmp_path / "plain.npz"), tmp_path / "run", ["unguided", "autoguidance"]
    source = open_data("digits")
    np.savez(data, images=source.read(range(400))[:, 0].numpy())
    # First in training, when main has logged but nothing is finished.
    kill_when(start(data, out), lambda: len(records(out / "main" / "log.jsonl")) >= 1)
    assert not (out / "trained.json").exists()
    plan = (out / "plan.json").read_bytes()
    # Then in the comparison, which must not search again.
    kill_when(start(data, out), lambda: len(records(out / "compare.jsonl")) >= 2)
    searched = records(out / "search.jsonl")
    snapshots = {p.name: p.stat().st_mtime_ns for p in (out / "main" / "snapshots").iterdir()}
    compared = records(out / "compare.jsonl")
    assert not (out / "results.json").exists()

    stdout = finish(start(data, out))
    assert all(method in stdout for method in methods)
    assert str(out / "report.html") in stdout.replace("\n", "")
    results = check_results(out, methods)
    assert results["protocol"]["features"] == "pixels"
    # What was measured before a kill was kept, in place, and not measured again.
    assert records(out / "search.jsonl") == searched
    assert records(out / "compare.jsonl")[: len(compared)] == compared
    assert (out / "plan.json").read_bytes() == plan
    assert {p.name: p.stat().st_mtime_ns for p in (out / "main" / "snapshots").iterdir()} == snapshots
    check_generates(out, 8)

    files = ("search.jsonl", "compare.jsonl", "plan.json", "plan-measuring.json", "trained.json", "reference.npz")
    before = {name: (out / name).read_bytes() for name in files}
    rows = read_json(out / "results.json")["rows"]
    seconds = read_json(out / "seconds.json")
    assert main(options(data, out)) == 0
    after = read_json(out / "seconds.json")
    assert sum(after.values()) - sum(seconds.values()) < 2  # nothing was trained, searched or compared again
    assert {name: (out / name).read_bytes() for name in files} == before
    assert read_json(out / "results.json")["rows"] == rows

    capfd.readouterr()
    assert main(options(data, out, minutes=0.3)) == 2
    err = capfd.readouterr().err
    assert "other settings (minutes)" in err
    assert err.count("\n") == 1


@pytest.mark.slow
def test_run_on_fashion_mnist(start: Start, shared: Callable[[str], Path], tmp_path: Path) -> None:
    # 500 images of 28 x 28, which are padded to 32 and taken in blocks.
    content = lzma.decompress(shared("data/fashion-mnist-20k.npz.xz").read_bytes())
    arrays = np.load(BytesIO(content))
    np.savez(tmp_path / "fashion.npz", images=arrays["images"][:500], labels=arrays["labels"][:500])
    finish(start(str(tmp_path / "fashion.npz"), tmp_path / "run"))
    results = check_results(tmp_path / "run", METHODS)
    assert (results["dataset"]["num_images"], results["dataset"]["resolution"]) == (500, 28)
    check_generates(tmp_path / "run", 28)


def test_two_commands_in_one_folder(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    import fcntl

    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert main(["run", "digits", "--out", str(tmp_path / "run")]) == 2
    err = capfd.readouterr().err
    assert "another process is working in" in err
    assert err.count("\n") == 1
