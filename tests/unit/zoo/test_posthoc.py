"""Post-hoc averages as files: equal to the in-memory form, whatever was killed in between; and what is refused."""

import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from raw_snapshots import STDS, Interrupter, Killed, write_published
from torch import Tensor

from autoguidance.cli import main
from autoguidance.ema import ReconstructionWarning, snapshot_name, solve_coefficients
from autoguidance.errors import UserError
from autoguidance.models import ModelInfo, load_model, read_model_info, read_weights, save_model
from autoguidance.storage import Manifest
from autoguidance.zoo import list_snapshots, load
from autoguidance.zoo import posthoc_state as state_module
from autoguidance.zoo.posthoc import passes, plan_averages
from autoguidance.zoo.posthoc_state import RECORD, STATE
from autoguidance.zoo.posthoc_write import write_averages

WIDTHS = (0.03, 0.07, 0.1, 0.2)
LICENCE = "CC-BY-NC-SA-4.0"


def trajectory(count: int) -> list[dict[str, Tensor]]:
    """States of one small network that moves a little, with a buffer that changes too."""
    generator = torch.Generator().manual_seed(0)
    state = {"a.weight": torch.randn(50, 40, generator=generator), "b": torch.randn(7, generator=generator)}
    states = []
    for step in range(count):
        state = {name: value + 0.1 * torch.randn(value.shape, generator=generator) for name, value in state.items()}
        states.append({**state, "c.freqs": torch.tensor([float(step)])})
    return states


def write_snapshots(
    folder: Path, times: int = 8, *, manifest: bool = False
) -> dict[tuple[int, float], dict[str, Tensor]]:
    """A folder of snapshots (of a run, with a manifest) and what is in them."""
    profiles = [(1024 * (step + 1), std) for step in range(times) for std in STDS]
    content = dict(zip(profiles, trajectory(len(profiles)), strict=True))
    for (time, std), state in content.items():
        path = (folder / "snapshots" if manifest else folder) / snapshot_name(time, std)
        info = ModelInfo(
            config={"size": 1}, num_images=time, ema_std=std, licence=LICENCE, provenance={"config_sha256": "abc"}
        )
        save_model(path, state, info)
        if manifest:
            Manifest(folder).commit(path)
    return content


def in_memory(content: dict[tuple[int, float], dict[str, Tensor]], end: int, std: float) -> dict[str, np.ndarray]:
    """Algorithm 3 in float64, with every snapshot held in memory."""
    stored = sorted(profile for profile in content if profile[0] <= end)
    X = solve_coefficients(stored, [(end, std)])[:, 0]
    last = content[max(stored)]
    return {
        name: value.numpy()
        if name.endswith("freqs")
        else sum(x * content[profile][name].double().numpy() for x, profile in zip(X, stored, strict=True))
        for name, value in last.items()
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("raw")
    write_snapshots(path)
    return path


@pytest.fixture(scope="module")
def expected(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of an uninterrupted call."""
    out = tmp_path_factory.mktemp("expected")
    return contents(write_averages(plan_averages(folder, WIDTHS), out))


def contents(paths: Sequence[Path]) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in paths}


@pytest.mark.parametrize("manifest", [False, True])
def test_the_files_are_the_in_memory_reconstruction(tmp_path: Path, manifest: bool) -> None:
    content = write_snapshots(tmp_path / "raw", manifest=manifest)
    progress: list[tuple[int, int]] = []
    plan = plan_averages(tmp_path / "raw", WIDTHS, 6 * 1024)
    paths = write_averages(plan, tmp_path / "out", progress=lambda done, total, _: progress.append((done, total)))
    assert [path.name for path in paths] == [snapshot_name(6 * 1024, std) for std in WIDTHS]
    for std, path in zip(WIDTHS, paths, strict=True):
        weights, truth = read_weights(path), in_memory(content, 6 * 1024, std)
        assert weights.keys() == truth.keys()
        for name, value in truth.items():
            assert weights[name].dtype == torch.float32
            difference = np.linalg.norm(weights[name].double().numpy() - value)
            assert difference <= 1e-6 * np.linalg.norm(value), (std, name)
        info = read_model_info(path)
        assert (info.num_images, info.ema_std, info.licence) == (6 * 1024, std, LICENCE)
        assert info.provenance["config_sha256"] == "abc"
        assert info.provenance["posthoc"]["num_snapshots"] == 12
    stored = content[6 * 1024, 0.1]
    assert all(torch.equal(value, stored[name]) for name, value in read_weights(paths[2]).items())  # as stored
    assert progress[-1][0] == progress[-1][1] == plan.size_bytes
    assert [done for done, _ in progress] == sorted(done for done, _ in progress)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted([RECORD, *(p.name for p in paths)])
    record = json.loads((tmp_path / "out" / RECORD).read_text())["outputs"]
    assert [record[path.name]["profile_error"] for path in paths] == list(plan.errors)


@pytest.mark.parametrize("after", [1, 2, 7, 13, 30])
def test_killed_while_adding(folder: Path, expected: dict[str, bytes], tmp_path: Path, after: int) -> None:
    plan = plan_averages(folder, WIDTHS)
    with pytest.raises(Killed):
        write_averages(plan, tmp_path, progress=Interrupter(after), save_seconds=0)
    again = Interrupter(-1)
    notices: list[str] = []
    paths = write_averages(plan_averages(folder, WIDTHS), tmp_path, progress=again, notify=notices.append)
    assert contents(paths) == expected
    group = plan.size_bytes // 8
    assert again.first_done >= group * (
        after // 4
    )  # three tensors and one more call per time: saved ones are not read again
    assert notices == ([] if after < 4 else [f"going on with the unfinished work in {tmp_path / STATE}"])
    assert not (tmp_path / STATE).exists()


@pytest.mark.parametrize(
    ("kind", "victim"),
    [
        *(("sums", n) for n in (1, 2, 5, 9, 28)),  # one per width, after each of seven times
        *(("state", n) for n in (1, 2, 8)),
        *(("output", n) for n in (1, 2, 4)),
        *(("record", n) for n in (1, 2, 4)),
    ],
)
def test_killed_while_writing(
    folder: Path, expected: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, victim: int
) -> None:
    """Between any two files that a call writes: the sums of some widths, state.json, some of the results, the record."""
    count = 0

    def killing(name: str, module: Any, matches: Callable[[Path], bool]) -> None:
        real = getattr(module, name)

        def write(*arguments: Any) -> None:
            nonlocal count
            path = arguments[1] if name == "save_file" else arguments[0]
            if matches(Path(path)):
                count += 1
                if count == victim:
                    raise Killed
            real(*arguments)

        monkeypatch.setattr(module, name, write)

    from autoguidance.zoo import posthoc_write

    if kind == "sums":
        killing("save_file", state_module, lambda path: True)
    elif kind == "output":
        killing("save_model", posthoc_write, lambda path: True)
    else:
        killing("write_json", state_module, lambda path: path.name == ("state.json" if kind == "state" else RECORD))
    with pytest.raises(Killed):
        write_averages(plan_averages(folder, WIDTHS), tmp_path, save_seconds=0)
    monkeypatch.undo()
    progress = Interrupter(-1)
    assert contents(write_averages(plan_averages(folder, WIDTHS), tmp_path, progress=progress)) == expected
    if kind in ("output", "record"):  # the sums before the last time were there, also for fewer widths
        assert progress.first_done > plan_averages(folder, WIDTHS).size_bytes * 6 // 8


def test_a_real_kill(folder: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    program = f"""
import os, signal
from autoguidance.zoo.posthoc import plan_averages
from autoguidance.zoo.posthoc_write import write_averages
count = 0
def progress(done, total, figures):
    global count
    count += 1
    if count == 21:
        os.kill(os.getpid(), signal.SIGKILL)
write_averages(plan_averages({str(folder)!r}, {WIDTHS!r}), {str(tmp_path)!r}, progress=progress, save_seconds=0)
"""
    child = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True)
    assert child.returncode == -9, child.stderr
    again = Interrupter(-1)
    assert contents(write_averages(plan_averages(folder, WIDTHS), tmp_path, progress=again)) == expected
    assert again.first_done > 0.5 * plan_averages(folder, WIDTHS).size_bytes


def test_a_finished_call_reads_nothing_again(folder: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    write_averages(plan_averages(folder, WIDTHS[:2]), tmp_path)
    before = {name: (tmp_path / name).stat().st_mtime_ns for name in list(expected)[:2]}
    calls: list[int] = []
    write_averages(plan_averages(folder, WIDTHS[:2]), tmp_path, progress=lambda done, *_: calls.append(done))
    assert calls == []
    assert contents(write_averages(plan_averages(folder, WIDTHS), tmp_path)) == expected
    assert before == {name: (tmp_path / name).stat().st_mtime_ns for name in before}


@pytest.mark.parametrize("change", ["widths", "snapshots", "damaged sums", "damaged state"])
def test_work_that_does_not_fit_starts_over(folder: Path, tmp_path: Path, change: str) -> None:
    shutil.copytree(folder, tmp_path / "raw")
    out, widths = tmp_path / "out", WIDTHS
    with pytest.raises(Killed):
        write_averages(plan_averages(tmp_path / "raw", WIDTHS), out, progress=Interrupter(20), save_seconds=0)
    notice = f"the unfinished work in {out / STATE} is of other snapshots: starting over"
    if change == "widths":
        widths, notice = (0.04, *WIDTHS), notice.replace("snapshots", "widths")
    elif change == "snapshots":
        victim = tmp_path / "raw" / snapshot_name(1024, 0.05)
        info, state = read_model_info(victim), read_weights(victim)
        save_model(victim, {**state, "b": state["b"] + 1}, info)
        os.utime(victim, ns=(1, 1))
    elif change == "damaged sums":
        victim = sorted(out.glob(f"{STATE}/0*/*.safetensors"))[2]
        victim.write_bytes(victim.read_bytes()[:-100])
    else:
        (out / STATE / "state.json").write_text("{")
    notices: list[str] = []
    paths = write_averages(plan_averages(tmp_path / "raw", widths), out, notify=notices.append)
    fresh = write_averages(plan_averages(tmp_path / "raw", widths), tmp_path / "fresh")
    assert contents(paths) == contents(fresh)
    if change != "damaged sums":  # of which only reading tells
        assert notices == [notice]


def test_changed_snapshots_are_averaged_again(tmp_path: Path) -> None:
    write_snapshots(tmp_path / "raw", 3)
    (path,) = write_averages(plan_averages(tmp_path / "raw", [0.07], 2048), tmp_path / "out")
    before = path.read_bytes()
    (tmp_path / "raw" / snapshot_name(1024, 0.05)).unlink()
    (path,) = write_averages(plan_averages(tmp_path / "raw", [0.07], 2048), tmp_path / "out")
    assert path.read_bytes() != before
    later = path.stat().st_mtime_ns
    (tmp_path / "raw" / snapshot_name(3072, 0.05)).unlink()  # lies after the wanted time
    write_averages(plan_averages(tmp_path / "raw", [0.07], 2048), tmp_path / "out")
    assert path.stat().st_mtime_ns == later


def test_several_passes_where_memory_is_short(folder: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    plan = plan_averages(folder, WIDTHS)
    network = plan.network_bytes
    assert network == 4 * (50 * 40 + 7 + 1)
    assert passes(plan, WIDTHS, 5 * network) == [WIDTHS]
    assert passes(plan, WIDTHS, 4 * network) == [WIDTHS[:2], WIDTHS[2:]]
    assert len(passes(plan, WIDTHS, 2 * network)) == 4
    assert passes(plan, (), 0) == []
    with pytest.raises(UserError, match=r"one width needs .* GB of memory"):
        passes(plan, WIDTHS, 2 * network - 1)
    progress: list[tuple[int, int]] = []
    with pytest.raises(Killed):
        write_averages(plan, tmp_path, memory_bytes=2 * network, progress=Interrupter(50), save_seconds=0)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1  # of the first pass; the second was stopped in the middle
    # What was begun is finished as it is, though more memory is there now.
    paths = write_averages(plan, tmp_path, memory_bytes=3 * network, progress=lambda d, t, _: progress.append((d, t)))
    assert contents(paths) == expected
    assert progress[-1][0] == progress[-1][1] == 2 * plan.size_bytes
    assert progress[0][0] > plan.size_bytes // 8


def test_times_of_no_weight_are_not_read(folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        if path.name >= snapshot_name(8 * 1024, 0.0):
            shutil.copy(path, tmp_path / path.name)
        else:
            (tmp_path / path.name).write_bytes(b"damaged")
    (path,) = write_averages(plan_averages(tmp_path, [0.05]), tmp_path / "out")
    assert read_model_info(path).ema_std == 0.05
    with pytest.raises(UserError, match=r"00000001024-0\.050\.safetensors is not a readable"):
        write_averages(plan_averages(tmp_path, [0.06]), tmp_path / "out")


def spoil(path: Path, **changes: Any) -> None:
    info, state = read_model_info(path), read_weights(path)
    weights = changes.pop("weights", {})
    save_model(path, {**state, **weights}, replace(info, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": {"size": 2}}, "is of another network"),
        ({"weights": {"b": torch.zeros(8)}}, r"is of another network .*\(b differs\)"),
        ({"weights": {"b": torch.full((7,), torch.nan)}}, "b holds values that are not finite"),
        ({"provenance": {"posthoc": {}}}, "is itself a post-hoc average"),
    ],
)
def test_snapshots_that_cannot_be_used(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write_snapshots(tmp_path, 3)
    spoil(tmp_path / snapshot_name(2048, 0.1), **changes)
    with pytest.raises(UserError, match=message) as caught:
        write_averages(plan_averages(tmp_path, [0.07]), tmp_path / "out")
    assert snapshot_name(2048, 0.1) in str(caught.value)
    assert not list((tmp_path / "out").glob("*.safetensors"))


def test_a_changed_bit_in_a_run_is_noticed(tmp_path: Path) -> None:
    write_snapshots(tmp_path, 2, manifest=True)
    victim = tmp_path / "snapshots" / snapshot_name(1024, 0.05)
    content = bytearray(victim.read_bytes())
    content[-5] ^= 1
    victim.write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        write_averages(plan_averages(tmp_path, [0.07]), tmp_path / "out")


def test_other_peoples_files_are_not_replaced(folder: Path, tmp_path: Path) -> None:
    plan = plan_averages(folder, [0.07])
    with pytest.raises(UserError, match="the folder of the snapshots themselves"):
        write_averages(plan, folder)
    mine = tmp_path / snapshot_name(8 * 1024, 0.07)
    shutil.copy(folder / snapshot_name(8 * 1024, 0.05), mine)
    with pytest.raises(UserError, match="is not a post-hoc average"):
        write_averages(plan, tmp_path)
    mine.unlink()
    (path,) = write_averages(plan, tmp_path)
    (tmp_path / RECORD).unlink()
    assert write_averages(plan, tmp_path) == [path]  # a reconstruction may be made again


def test_licences_of_all_sources_are_carried_over(tmp_path: Path) -> None:
    write_snapshots(tmp_path, 2)
    spoil(tmp_path / snapshot_name(1024, 0.1), licence="Apache-2.0")
    spoil(tmp_path / snapshot_name(1024, 0.05), licence=None)
    (path,) = write_averages(plan_averages(tmp_path, [0.07]), tmp_path / "out")
    assert read_model_info(path).licence == f"Apache-2.0 AND {LICENCE}"


# Published snapshots


@pytest.mark.parametrize("prefix", ["network-snapshot", "edm2-img64-s"])
def test_published_snapshots(tmp_path: Path, prefix: str) -> None:
    content = write_published(tmp_path / "raw", prefix=prefix)
    end = 4 * 2**25
    paths = write_averages(plan_averages(tmp_path / "raw", [0.07, 0.1]), tmp_path / "out")
    assert [path.name for path in paths] == [snapshot_name(end, 0.07), snapshot_name(end, 0.1)]
    weights, truth = read_weights(paths[0]), in_memory(content, end, 0.07)
    for name, value in truth.items():
        assert weights[name].dtype == torch.float16
        if not name.endswith("phases"):  # float64 sums may round to the other neighbour, if float32 stood between
            np.testing.assert_allclose(weights[name].float().numpy(), value, rtol=2**-10, atol=2**-20)
    assert all(torch.equal(value, content[end, 0.1][name]) for name, value in read_weights(paths[1]).items())
    info = read_model_info(paths[0])
    assert info.licence == LICENCE
    assert info.provenance["posthoc"]["num_snapshots"] == 8
    assert info.encoder == {"name": "pixels"}
    model = load_model(paths[0])
    named = load(f"{tmp_path / 'raw'}@0.070")  # the same by name, in float32
    for name, value in named.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=2**-10, atol=2**-20)
    assert load(f"{tmp_path / 'raw'}@0.050:{2**25}").num_classes == 3


def test_folders_of_published_snapshots(tmp_path: Path) -> None:
    write_published(tmp_path / "raw", 2)
    first = tmp_path / "raw" / "network-snapshot-0033554-0.050.pkl"
    (tmp_path / "raw" / "network-snapshot-latest.pkl").write_bytes(b"")
    found = list_snapshots(tmp_path / "raw")
    assert [(s.num_images, s.ema_std) for s in found] == [(t * 2**25, std) for t in (1, 2) for std in STDS]
    imported = first.with_name(snapshot_name(2**25, 0.05))
    imported.write_bytes(b"")
    assert list_snapshots(tmp_path / "raw")[0].path == imported  # a model file stands for its pickle
    imported.unlink()
    shutil.copy(first, first.with_name("edm2-img64-m-0033554-0.050.pkl"))
    with pytest.raises(UserError, match=r"several networks \(edm2-img64-m, network-snapshot\)"):
        list_snapshots(tmp_path / "raw")


# Expected errors, warnings and the command


def test_loading_a_width_that_cannot_be_represented_warns_once(run: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(2):
            load(f"{run}@0.010")
        load(f"{run}@0.070")
        load(f"{run}@0.050")
    texts = [str(w.message) for w in caught if issubclass(w.category, ReconstructionWarning)]
    assert len(texts) == 1
    assert "cannot represent EMA width 0.01 " in texts[0]
    assert "\n" not in texts[0]


def test_the_table_comes_before_the_work(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["ema", str(folder), "--std", "0.010,0.020,...,0.100", "--out", str(tmp_path / "out")]
    assert main([*arguments, "--dry-run"]) == 0
    shown = capsys.readouterr()
    plan = plan_averages(folder, [0.01, 0.02])
    for figure in (f"{plan.errors[0]:.2%}", f"{plan.errors[1]:.2%}", "would read", "1 pass"):
        assert figure in shown.out
    (line,) = shown.err.strip().splitlines()
    assert "cannot represent width 0.010, 0.020 (profile error above 15%)" in line
    assert not (tmp_path / "out").exists()
    assert main(arguments) == 0
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == 10
    assert "10 models in" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--std", "0.07", "--memory", "0"], "--memory"),
        (["--std", "0.07", "--memory", "0.000000001"], "one width needs"),
        (["--std", "0.07", "--at", "5"], "no snapshot at 5 images"),
        (["--std", "0.07", "--list", "nowhere.txt"], "nowhere.txt cannot be read"),
        (["--std", "0.07", "--list", __file__], "a list of names is for an address"),
    ],
)
def test_mistakes_are_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["ema", str(folder), *arguments, "--out", str(tmp_path / "out")]) == 2
    last = capsys.readouterr().err.strip().splitlines()
    assert len(last) == 1
    assert message in last[0]
