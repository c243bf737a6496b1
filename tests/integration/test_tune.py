"""`autoguidance tune`: finds a pair, shares the work, survives kills, and refuses what cannot be searched in one line."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from autoguidance.cli import main
from autoguidance.storage import read_json, read_json_lines
from autoguidance.zoo import Pair

COMMON = (  # eight features, so that there are rungs of 128 and 256 images
    "--ref digits --features callable:row_means:features --num 256 --budget 1536 --repeats 2 --finalists 2 --steps 3 "
    "--device cpu --lease 6"
)

SUPPORT = Path(__file__).resolve().parents[1] / "support"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run and a shorter one."""
    folder = tmp_path_factory.mktemp("models")
    for name, images in (("main", 6144), ("guide", 1024)):
        options = f"train digits --out {folder / name} --preset nano --images {images} --device cpu --seed {images}"
        assert main(options.split()) == 0
    return folder


def command(models: Path, out: Path, *more: str) -> list[str]:
    names = ["--main", str(models / "main"), "--guide", str(models / "guide"), "--out", str(out)]
    return ["tune", *names, *COMMON.split(), *more]


def start(arguments: list[str]) -> "subprocess.Popen[str]":
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SUPPORT)}
    line = [sys.executable, "-m", "autoguidance", *arguments]
    return subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: "subprocess.Popen[str]") -> str:
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    return stdout


def without_times(results: dict[str, Any]) -> dict[str, Any]:
    """Results without what depends on the clock, with measurements sorted."""

    def clean(record: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in record.items() if name not in ("seconds_per_image", "new_images")}

    search = sorted((clean(record) for record in results["search"]), key=lambda r: str(sorted(r.items(), key=str)))
    return {"rows": [clean(row) for row in results["rows"]], "search": search, "protocol": results["protocol"]}


@pytest.fixture(scope="module")
def tuned(models: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """An undisturbed search by one process; (pair file, what it printed)."""
    out = tmp_path_factory.mktemp("tuned") / "pair.json"
    return out, finish(start(command(models, out, "--processes", "1")))


@pytest.mark.slow
def test_results(tuned: tuple[Path, str], models: Path) -> None:
    out, printed = tuned
    results = read_json(out.with_suffix(".tune") / "results.json")
    assert [row["method"] for row in results["rows"]] == ["unguided", "autoguidance"]
    for row in results["rows"]:
        assert len(row["fd_repeats"]) == 2
        assert row["fd"] == pytest.approx(sum(row["fd_repeats"]) / 2)
        assert row["fd_min"] == min(row["fd_repeats"])
    protocol = results["protocol"]
    assert (protocol["num_images"], protocol["repeats"]) == (256, 2)
    assert protocol["seeds"] == ["0-255", "256-511"]
    # What is reported was measured on other seeds than what chose it, and nothing twice.
    searched = [record for record in results["search"] if record["first_seed"] >= 5_000_000]
    confirmed = [record for record in results["search"] if record["first_seed"] < 5_000_000]
    assert {record["first_seed"] for record in confirmed} == {0, 256}
    units = Counter(str([r["setting"], r["first_seed"], r["num_images"]]) for r in results["search"])
    assert max(units.values()) == 1
    guided = [r for r in searched if r["method"] == "autoguidance"]
    assert {r["num_images"] for r in guided} == {128, 256}
    assert sum(r["new_images"] for r in guided) <= 1536
    assert all(r["new_images"] == 128 for r in guided)  # the upper rung takes over what the lower one sampled
    assert results["num_images_sampled"] == sum(r["new_images"] for r in results["search"])
    sensitivity = results["sensitivity"]["autoguidance"]
    best = results["rows"][1]
    assert sensitivity["axes"]["weight"]["best"] == best["weight"]
    assert best["weight"] in sensitivity["axes"]["weight"]["near"]
    pair = Pair.load(out)
    assert (pair.weight, pair.measurement["row"]["fd"]) == (best["weight"], best["fd"])
    assert Path(pair.main.partition("@")[0]).resolve() == (models / "main").resolve()
    assert "images sampled" in printed
    page = (out.with_suffix(".tune") / "report.html").read_text()
    assert "each choice alone" in page


@pytest.mark.slow
def test_the_pair_generates(tuned: tuple[Path, str], tmp_path: Path) -> None:
    line = ["generate", "--pair", str(tuned[0]), "--seeds", "0-3", "--out", str(tmp_path), "--device", "cpu"]
    assert main(line) == 0
    assert len(list(tmp_path.glob("*.png"))) == 4


@pytest.mark.slow
def test_the_same_command_has_nothing_left_to_do(tuned: tuple[Path, str], models: Path) -> None:
    out, _ = tuned
    before, trials = out.read_bytes(), read_json_lines(out.with_suffix(".tune") / "trials.jsonl")
    assert main(command(models, out, "--processes", "1")) == 0
    after = read_json_lines(out.with_suffix(".tune") / "trials.jsonl")
    assert out.read_bytes() == before
    assert after[: len(trials)] == trials


@pytest.mark.slow
def test_killed_it_goes_on_and_ends_the_same(tuned: tuple[Path, str], models: Path, tmp_path: Path) -> None:
    out = tmp_path / "pair.json"
    journal = out.with_suffix(".tune") / "trials.jsonl"
    arguments = command(models, out, "--processes", "1")
    for size in (4000, 12000):
        process = start(arguments)
        deadline = time.monotonic() + 120
        while not journal.exists() or journal.stat().st_size < size:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    finish(start(arguments))
    killed = read_json(out.with_suffix(".tune") / "results.json")
    whole = read_json(tuned[0].with_suffix(".tune") / "results.json")
    assert without_times(killed) == without_times(whole)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".jsonl", ".db"])
def test_two_commands_share_one_search(models: Path, tmp_path: Path, suffix: str) -> None:
    storage = tmp_path / f"search{suffix}"
    outs = [tmp_path / "a" / "pair.json", tmp_path / "b" / "pair.json"]
    processes = [start(command(models, out, "--processes", "1", "--storage", str(storage))) for out in outs]
    for process in processes:
        finish(process)
    first, second = (read_json(out.with_suffix(".tune") / "results.json") for out in outs)
    assert without_times(first) == without_times(second)
    units = Counter(str([r["setting"], r["first_seed"], r["num_images"]]) for r in first["search"])
    assert max(units.values()) == 1


@pytest.mark.slow
def test_another_search_in_the_same_storage_is_refused(
    tuned: tuple[Path, str], models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = tuned
    assert main([*command(models, out, "--processes", "1"), "--first-seed", "7"]) == 2
    error = capsys.readouterr().err
    assert "seed" in error
    assert len(error.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--main", "nowhere"], "nowhere"),
        (["--guide", "nowhere/guide"], "nowhere/guide"),
        (["--budget", "100"], "--budget 100 is less than one measurement"),
        (["--num", "10"], "--num 10"),
        (["--out", "pair.txt"], "ends in .json"),
        (["--features", "pixels,classifier"], "one feature network"),
        (["--storage", "ftp://somewhere"], "storage"),
        (["--classes", "each"], "--classes 'each'"),
        (["--unconditional", "nowhere/u"], "nowhere/u"),
    ],
)
def test_mistakes_are_named_in_one_line(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: list[str], message: str
) -> None:
    assert main([*command(models, tmp_path / "pair.json", "--processes", "1"), *changes]) == 2
    lines = [line for line in capsys.readouterr().err.strip().splitlines() if "warning" not in line]
    assert len(lines) == 1
    assert message in lines[0]
