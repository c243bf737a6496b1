"""`autoguidance diagnose` on small trained runs: verdict, ranking, files, metadata warnings, and one line for a mistake."""

import json
from pathlib import Path

import numpy as np
import pytest

from autoguidance.cli import main
from autoguidance.data import open_data
from autoguidance.train.loop import train
from autoguidance.train.presets import resolve
from autoguidance.tune.diagnose import diagnose
from autoguidance.tune.pair_check import check_pair


def train_run(root: Path, name: str, data: str, *overrides: str, unconditional: bool = False) -> None:
    source = open_data(data)
    config = resolve(
        "nano",
        source,
        num_images=512,
        seed=len(name),
        on_gpu=False,
        num_snapshots=2,
        unconditional=unconditional or None,
        overrides=("network.model_channels=8", "network.channels_per_head=8", *overrides),
    )
    train(config, source, root / name, device="cpu")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("diagnose")
    digits = open_data("digits")
    class_idx = digits.class_idx
    assert class_idx is not None
    pixels = digits.read(range(200)).numpy()
    names = np.array(digits.class_names)
    np.savez(root / "few.npz", images=pixels, labels=class_idx[:200], class_names=names)
    np.savez(root / "unlabelled.npz", images=pixels)
    train_run(root, "main", "digits")
    train_run(root, "few", str(root / "few.npz"))
    train_run(root, "dropout", "digits", "network.dropout=0.2", "mirror=true")
    train_run(root, "free", "digits", unconditional=True)
    return root


def early(root: Path, run: str) -> str:
    times = sorted({int(path.name[:11]) for path in (root / run / "snapshots").glob("*.safetensors")})
    return f"{root / run}@0.100:{times[0]}"


def test_command(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = str(runs / "main")
    guides = [early(runs, "main"), str(runs / "main@0.050"), str(runs / "few"), str(runs / "free")]
    arguments = ["diagnose", "--main", name, "--num", "64", "--device", "cpu"]
    for guide in guides:
        arguments += ["--guide", guide]
    out, plot = runs / "out" / "d.json", runs / "out" / "d.png"
    assert main([*arguments, "--out", str(out), "--plot", str(plot)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    content = json.loads(out.read_text())
    assert content["guides"][0]["guide"] == content["best"]
    assert {guide["guide"] for guide in content["guides"]} == set(guides)
    by_name = {guide["guide"]: guide for guide in content["guides"]}
    assert by_name[str(runs / "main@0.050")]["verdict"] == "too similar"
    assert any("different data (1,797 and 200 images)" in text for text in by_name[str(runs / "few")]["warnings"])
    assert any("classifier-free" in text for text in by_name[str(runs / "free")]["warnings"])
    assert all(guide["protocol"]["trained_on_data"] for guide in content["guides"])
    assert all(guide["reason"] in shown for guide in content["guides"])
    assert "64 images of digits (on which the main model was trained" in shown
    assert plot.read_bytes()[:4] == b"\x89PNG"

    assert main([*arguments, "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again == content  # the same seeds give the same figures

    (single,) = (guide for guide in content["guides"] if guide["guide"] == guides[0])
    from autoguidance.tune.denoising import DenoisingSettings

    found = diagnose(name, guides[0], open_data("digits"), settings=DenoisingSettings(num_images=64))
    assert json.loads(json.dumps(found.to_dict())) == single


def test_one_guide_shows_its_levels(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = str(runs / "main")
    assert main(["diagnose", "--main", name, "--guide", early(runs, "main"), "--num", "16", "--levels", "8"]) == 0
    shown = capsys.readouterr().out
    assert "guide's excess" in shown
    assert "0.01 │" in shown
    assert " 80 │" in shown


def test_metadata_alone(runs: Path) -> None:
    name = str(runs / "main")
    assert check_pair(name, early(runs, "main")) == []
    (same,) = check_pair(name, str(runs / "main@0.100"))
    assert "same weights" in same
    (later,) = check_pair(early(runs, "main"), name)
    assert "later snapshot" in later
    assert "swap" in later
    (degraded,) = check_pair(name, str(runs / "dropout"))
    assert "dropout 0.0 against 0.2" in degraded
    assert "mirrored training images False against True" in degraded
    (other,) = check_pair(name, str(runs / "few"))
    assert "trained on less data was of no help" in other
    (free,) = check_pair(name, str(runs / "free"))
    assert "unconditional" in free
    (wrong,) = check_pair(str(runs / "free"), name)
    assert "number of classes 0 against 10" in wrong
    # A stored file says the same as the run that it lies in.
    file = next((runs / "dropout" / "snapshots").glob("*-0.100.safetensors"))
    assert any("mirrored" in text for text in check_pair(name, str(file)))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("--main {r}/main --guide {r}/nowhere", "nowhere does not exist"),
        ("--main {r}/free --guide {r}/main", "number of classes 0 against 10"),
        ("--main {r}/main --guide {r}/main@0.05 {r}/unlabelled.npz", "has no labels"),
        ("--main {r}/main --guide {r}/main@0.05 {r}/absent.zip", "absent.zip does not exist"),
        ("--main {r}/main --guide {r}/main@0.05 --num 1", "too few"),
        ("--main {r}/main --guide {r}/main@0.05 --sigma-min 9 --num 4", "choose more levels"),
        ("--main {r}/main --guide {r}/main@0.05 --plot {r}/x.pdf", "ends in .png"),
        ("--main {r}/main", "--guide"),
    ],
)
def test_mistakes(runs: Path, capsys: pytest.CaptureFixture[str], arguments: str, named: str) -> None:
    assert main(["diagnose", *(word.format(r=runs) for word in arguments.split())]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert named in line
