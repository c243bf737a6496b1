"""One way to name a model: file, run folder, EMA width, time."""

import shutil
from pathlib import Path

import pytest
import torch

from autoguidance.cli import main
from autoguidance.ema import reconstruct, snapshot_name
from autoguidance.errors import UserError
from autoguidance.models import (
    ModelInfo,
    Precond,
    build_model,
    load_model,
    read_model_info,
    read_weights,
    save_model,
)
from autoguidance.storage import Manifest
from autoguidance.zoo import average, identify, list_snapshots, load, parse_model_name
from autoguidance.zoo.runs import is_buffer


def same(a: Precond, b: Precond) -> bool:
    return all(torch.equal(value, b.state_dict()[name]) for name, value in a.state_dict().items())


def test_a_file_and_the_run_that_holds_it(run: Path) -> None:
    last = run / "snapshots" / "00000004096-0.100.safetensors"
    expected = load_model(last)
    assert same(load(last), expected)
    assert same(load(str(last)), expected)
    assert same(load(run), expected)  # the last time, the average nearest to 0.100
    assert same(load(f"{run}@0.100"), expected)
    assert same(load(f"{run}@0.1:4096"), expected)
    assert same(load(f"{run}:4Ki"), expected)
    early = load_model(run / "snapshots" / "00000001024-0.050.safetensors")
    assert same(load(f"{run}@0.050:1Ki"), early)
    assert not same(early, expected)


def test_a_folder_of_snapshots_without_a_manifest(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "snapshots", tmp_path / "raw")
    (tmp_path / "raw" / "readme.txt").write_text("not a snapshot")
    assert same(load(tmp_path / "raw"), load(run))
    assert same(load(f"{tmp_path / 'raw'}@0.07"), load(f"{run}@0.07"))


def test_a_file_that_is_not_in_the_manifest_does_not_exist(run: Path, tmp_path: Path) -> None:
    copied = tmp_path / "run"
    shutil.copytree(run, copied)
    stray = copied / "snapshots" / "00000008192-0.100.safetensors"
    shutil.copy(copied / "snapshots" / "00000004096-0.100.safetensors", stray)
    assert len(list_snapshots(copied)) == len(list_snapshots(run)) == 6
    assert same(load(copied), load(run))


def test_a_width_that_is_not_stored_is_reconstructed(run: Path) -> None:
    model = load(f"{run}@0.070:2Ki")
    stored = {(s.num_images, s.ema_std): s.path for s in list_snapshots(run) if s.num_images <= 2048}
    expected = reconstruct(
        {profile: (lambda path=path: read_weights(path)) for profile, path in stored.items()},
        2048,
        [0.07],
        is_buffer=is_buffer,
    )[0.07]
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    assert torch.equal(model.logvar_fourier.freqs, load(run).logvar_fourier.freqs)  # buffers are copied, not averaged
    ((info, _),) = average(run, [0.07], 2048).values()
    assert (info.ema_std, info.num_images) == (0.07, 2048)
    assert info.config == read_model_info(next(iter(stored.values()))).config


@pytest.mark.parametrize(
    ("text", "std", "count"),
    [
        ("runs/main", None, None),
        ("runs/main@0.070", 0.07, None),
        ("runs/main@0.070:8Mi", 0.07, 8 * 2**20),
        ("runs/main:1.5Ki", None, 1536),
        ("runs/a@b/main@0.1", 0.1, None),
        ("x.safetensors", None, None),
        ("runs/main@0.0725", 0.0725, None),
    ],
)
def test_names_come_back_as_text(text: str, std: float | None, count: int | None) -> None:
    parsed = parse_model_name(text)
    assert (parsed.ema_std, parsed.num_images) == (std, count)
    assert parse_model_name(str(parsed)) == parsed
    assert str(parsed.path) in text


def test_an_existing_path_with_odd_characters_is_that_path(tmp_path: Path) -> None:
    (tmp_path / "a@0.05:3").mkdir()
    assert parse_model_name(tmp_path / "a@0.05:3").path == tmp_path / "a@0.05:3"


@pytest.mark.parametrize(
    ("suffix", "message"),
    [
        ("@0", "out of range"),
        ("@-0.1", "out of range"),
        ("@0.3", r"\(0, 0\.289\]"),
        ("@nan", "out of range"),
        ("@wide", "'wide' is out of range"),
        ("@", "out of range"),
        ("@0.07:", "not a number of images"),
        ("@0.07:many", "not a number of images"),
        ("@0.07:5", "no snapshot at 5 images.*1024, 2048, 4096"),
        (":5", "no snapshot at 5 images"),
        ("x", "does not exist"),
        ("/x.safetensors", "does not exist"),
        ("/snapshots/00000004096-0.100.safetensors@0.05", "one width and time"),
    ],
)
def test_names_that_cannot_be_had(run: Path, suffix: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load(f"{run}{suffix}")
    assert "\n" not in str(caught.value)


def test_folders_that_are_no_runs(tmp_path: Path, run: Path) -> None:
    with pytest.raises(UserError, match="holds no snapshots"):
        load(tmp_path)
    (tmp_path / "file.txt").write_text("x")
    with pytest.raises(UserError, match="not a readable safetensors"):
        load(tmp_path / "file.txt")
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "manifest.json").write_text("{")
    with pytest.raises(UserError, match=r"manifest\.json is not valid JSON"):
        load(tmp_path / "run")


def test_a_damaged_snapshot_is_named(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    victim = tmp_path / "run" / "snapshots" / "00000002048-0.050.safetensors"
    victim.write_bytes(victim.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"00000002048-0\.050"):
        load(tmp_path / "run@0.07")
    assert load(tmp_path / "run@0.05").num_classes == 3  # the last ones are whole


def test_a_snapshot_whose_bits_changed_is_refused(tmp_path: Path) -> None:
    """Weights that still parse but are not what training committed (a flipped bit) must not be sampled with."""
    run = tmp_path / "run"
    config = {"img_resolution": 4, "img_channels": 1, "model_channels": 8, "channel_mult": [1], "num_blocks": 1}
    config |= {"channels_per_head": 8, "attn_resolutions": []}
    path = run / "snapshots" / snapshot_name(100, 0.05)
    save_model(path, build_model(config).state_dict(), ModelInfo(config=config, num_images=100, ema_std=0.05))
    Manifest(run).commit(path)
    load(run)
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        load(run)


def test_a_name_alone_does_not_identify_a_model(run: Path, tmp_path: Path) -> None:
    copied = tmp_path / "run"
    shutil.copytree(run, copied)
    assert identify(copied) == {"num_images": 4096, "ema_std": 0.1}
    assert identify(f"{copied}@0.070:2Ki") == {"num_images": 2048, "ema_std": 0.07}
    manifest = Manifest(copied)
    later = copied / "snapshots" / "00000008192-0.050.safetensors"
    shutil.copy(copied / "snapshots" / "00000004096-0.050.safetensors", later)
    manifest.commit(later)
    assert identify(copied) == {"num_images": 8192, "ema_std": 0.05}  # trained on


def test_samples_of_two_models_do_not_mix(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, out = tmp_path / "model.safetensors", tmp_path / "out"
    shutil.copy(run / "snapshots" / "00000001024-0.050.safetensors", model)
    arguments = ["generate", "--main", str(model), "--steps", "2", "--out", str(out), "--device", "cpu"]
    assert main([*arguments, "--seeds", "0-1"]) == 0
    assert main([*arguments, "--seeds", "0-2"]) == 0  # the same model continues
    shutil.copy(run / "snapshots" / "00000002048-0.050.safetensors", model)
    assert main([*arguments, "--seeds", "0-3"]) == 2
    assert "made with other settings (models)" in capsys.readouterr().err
    assert len(list(out.glob("*.png"))) == 3
