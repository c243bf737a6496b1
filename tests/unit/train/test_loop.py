"""A run: what it writes, what resuming repeats (nothing), and what it refuses."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import autoguidance.train.step as step_module
from autoguidance.ema.snapshots import parse_snapshot_name
from autoguidance.errors import UserError
from autoguidance.models.files import load_model, read_model_info
from autoguidance.storage import Manifest, read_json, read_json_lines
from autoguidance.train.config import TrainConfig
from autoguidance.train.folder import open_run, read_run
from autoguidance.train.loop import train
from autoguidance.train.schedule import snapshot_times

Make = Callable[..., TrainConfig]


def _hashes(folder: Path) -> dict[str, str]:
    files = read_json(folder / "manifest.json")["files"]
    return {name: digest for name, digest in files.items() if name.startswith("snapshots/")}


def _records(folder: Path) -> list[dict[str, Any]]:
    timed = ("seconds", "images_per_second")
    return [
        {key: value for key, value in record.items() if key not in timed}
        for record in read_json_lines(folder / "log.jsonl")
    ]


def test_a_run_leaves_everything_its_readers_need(blocks: Any, make_config: Make, tmp_path: Path) -> None:
    config = make_config(preset="mine")
    seen: list[tuple[int, int]] = []
    written: list[int] = []
    result = train(
        config,
        blocks,
        tmp_path / "run",
        progress=lambda done, total, figures: seen.append((done, total)),
        callbacks=[lambda num_images, paths: written.append(num_images * len(paths))],
    )
    assert (result.num_images, result.finished, result.already_finished, result.skipped) == (64, True, False, 0)
    assert seen[-1] == (64, 64)
    times = snapshot_times(64, 8, 2)
    assert written == [2 * time for time in times]
    known, content = read_run(tmp_path / "run")
    assert known == config
    assert content["data"]["fingerprint"] == blocks.fingerprint
    manifest = Manifest(tmp_path / "run")
    names = [name for name in manifest.names() if name.startswith("snapshots/")]
    assert [parse_snapshot_name(Path(name).name) for name in names] == [(t, s) for t in times for s in (0.05, 0.1)]
    info = read_model_info(manifest.verify(names[-1]))
    assert (info.num_images, info.ema_std, info.class_names) == (64, 0.1, blocks.class_names)
    assert info.provenance["data_fingerprint"] == blocks.fingerprint
    assert load_model(manifest.verify(names[-1])).num_classes == 3
    records = read_json_lines(tmp_path / "run" / "log.jsonl")
    assert [record["images"] for record in records] == [16, 32, 48, 64]
    assert all(record["loss"] > 0 and record["grad_norm"] > 0 and record["seconds"] > 0 for record in records)
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 2
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*.safetensors")}
    assert train(config, blocks, tmp_path / "run").already_finished
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*.safetensors")}


def test_resuming_gives_the_same_bits_and_the_same_log(blocks: Any, make_config: Make, tmp_path: Path) -> None:
    config = make_config(network=replace(make_config().network, dropout=0.2))
    train(config, blocks, tmp_path / "whole")
    torch.manual_seed(5)
    state = torch.get_rng_state()
    for stop in (8, 30, 40):  # 30 is not a whole step: it stops at 32
        assert not train(config, blocks, tmp_path / "parts", stop_after_images=stop).finished
    with (tmp_path / "parts" / "log.jsonl").open("a") as file:  # what a session that was killed later leaves
        file.write(json.dumps({"images": 48, "loss": 99.0}) + '\n{"images": 56, "lo')
    resumed = train(replace(config, checkpoint_seconds=0.0), blocks, tmp_path / "parts")
    assert torch.equal(state, torch.get_rng_state())
    assert resumed.resumed_from == 40
    assert _hashes(tmp_path / "whole") == _hashes(tmp_path / "parts")
    assert _records(tmp_path / "whole") == _records(tmp_path / "parts")


def test_a_longer_run_goes_on_as_if_it_had_been_planned(blocks: Any, make_config: Make, tmp_path: Path) -> None:
    train(make_config(num_images=32), blocks, tmp_path / "grown")
    train(make_config(num_images=64), blocks, tmp_path / "grown")
    train(make_config(num_images=64), blocks, tmp_path / "whole")
    grown, whole = _hashes(tmp_path / "grown"), _hashes(tmp_path / "whole")
    last = [name for name in whole if "00000000064" in name]
    assert len(last) == 2
    assert all(grown[name] == whole[name] for name in last)
    assert read_run(tmp_path / "grown")[0].num_images == 64


def test_a_damaged_checkpoint_is_passed_over(
    blocks: Any, make_config: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = make_config()
    train(config, blocks, tmp_path / "whole")
    train(replace(config, checkpoint_seconds=0.0), blocks, tmp_path / "run", stop_after_images=48)
    newest = max((tmp_path / "run" / "checkpoints").iterdir())
    newest.write_bytes(newest.read_bytes()[:-100])
    assert train(config, blocks, tmp_path / "run").resumed_from == 40
    assert newest.name in caplog.text
    assert _hashes(tmp_path / "whole") == _hashes(tmp_path / "run")
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError, match="damaged"):
        train(make_config(num_images=128), blocks, tmp_path / "run")


def test_another_run_in_the_folder_is_refused_and_kept(
    blocks: Any, make_blocks: Callable[..., Any], make_config: Make, tmp_path: Path
) -> None:
    config = make_config()
    train(config, blocks, tmp_path, stop_after_images=16)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"learning_rate: 0\.01, 0\.5; give the same options"):
        train(replace(config, learning_rate=0.5), blocks, tmp_path)
    with pytest.raises(UserError, match="other data"):
        train(config, make_blocks(fingerprint="0" * 64), tmp_path)
    with open_run(tmp_path), pytest.raises(UserError, match="another process is training"):
        train(config, blocks, tmp_path)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_what_cannot_be_trained_is_refused_before_anything_is_written(
    blocks: Any, make_blocks: Callable[..., Any], make_config: Make, tmp_path: Path
) -> None:
    pixels = {"name": "pixels", "channels": 1, "resolution": 8}
    for config, source, answer in (
        (make_config(dtype="float16"), blocks, "needs a GPU"),
        (make_config(encoder=pixels), make_blocks(resolution=16), "resolve the preset"),
        (make_config(network=replace(make_config().network, channel_mult=(1,) * 5)), blocks, "cannot be halved"),
    ):
        with pytest.raises(UserError, match=answer):
            train(config, source, tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        train(make_config(), blocks, tmp_path / "file")


def test_a_diverging_run_skips_then_stops_and_keeps_its_last_good_state(
    blocks: Any, make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = make_config(max_nonfinite_steps=3, checkpoint_seconds=0.0)
    good_loss = step_module.edm_loss
    bad: set[int] = set()
    calls = 0

    def sometimes_infinite(*inputs: Any, **options: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return good_loss(*inputs, **options) * (float("inf") if calls in bad else 1)

    monkeypatch.setattr(step_module, "edm_loss", sometimes_infinite)
    bad |= {2, 3, 5}
    result = train(config, blocks, tmp_path / "some", stop_after_images=40)
    assert result.skipped == 3
    assert "step skipped" in caplog.text
    assert read_json_lines(tmp_path / "some" / "log.jsonl")[-1]["skipped"] == 2  # logged at 32, after steps 2 and 3
    calls, bad = 0, {3, 4, 5}
    with pytest.raises(UserError, match=r"stopped at 40 images.*learning_rate"):
        train(config, blocks, tmp_path / "run")
    calls, bad = 0, set()
    resumed = train(config, blocks, tmp_path / "run")
    assert (resumed.resumed_from, resumed.finished) == (16, True)
    train(config, blocks, tmp_path / "whole")
    assert _hashes(tmp_path / "run") == _hashes(tmp_path / "whole")


def test_tensorboard_is_optional(
    blocks: Any, make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    train(make_config(num_images=8), blocks, tmp_path)
    assert not (tmp_path / "tensorboard").exists()
    assert len(read_json_lines(tmp_path / "log.jsonl")) == 1
