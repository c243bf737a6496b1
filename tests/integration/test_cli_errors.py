"""A user's mistake, for every verb: exit code 2, one line on stderr that names the thing, no traceback, results intact."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from autoguidance.cli import VERBS, main
from autoguidance.ema import snapshot_name
from autoguidance.models import ModelInfo, build_model, save_model

CONFIG: dict[str, Any] = {
    "img_resolution": 8,
    "img_channels": 1,
    "label_dim": 3,
    "model_channels": 8,
    "channel_mult": [1],
    "num_blocks": 1,
    "attn_resolutions": [],
    "channels_per_head": 8,
}


def write_model(path: Path, **changes: Any) -> Path:
    config = {**CONFIG, **changes}
    encoder = {"name": "pixels", "channels": config["img_channels"], "resolution": config["img_resolution"]}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = build_model(config).state_dict()
    names = tuple(map(str, range(config["label_dim"])))
    info = ModelInfo(config=config, encoder=encoder, class_names=names, num_images=1024, ema_std=0.05)
    save_model(path, weights, info)
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with good and bad inputs of every kind."""
    root = tmp_path_factory.mktemp("cli")
    write_model(root / "main.safetensors")
    for name, changes in {
        "r16": {"img_resolution": 16},
        "rgb": {"img_channels": 3},
        "c4": {"label_dim": 4},
        "sd": {"sigma_data": 0.7},
        "u": {"label_dim": 0},
    }.items():
        write_model(root / f"{name}.safetensors", **changes)
    content = (root / "main.safetensors").read_bytes()
    (root / "cut.safetensors").write_bytes(content[: len(content) // 2])
    write_model(root / "run" / "snapshots" / snapshot_name(1024, 0.05))
    write_model(root / "run" / "snapshots" / snapshot_name(1024, 0.1))
    (root / "empty").mkdir()
    (root / "file").write_text("mine")
    generator = np.random.default_rng(0)
    for label in ("a", "b"):
        for folder in ("images", "corrupt"):
            (root / folder / label).mkdir(parents=True)
            for index in range(6):
                pixels = generator.integers(0, 256, (8, 8), dtype=np.uint8)
                Image.fromarray(pixels).save(root / folder / label / f"{index}.png")
    victim = root / "corrupt" / "b" / "3.png"
    victim.write_bytes(victim.read_bytes()[:60])
    (root / "bad.json").write_text("{")
    (root / "bad.npz").write_bytes(b"PK\x03\x04 not a zip")
    return root


# Arguments with {p} for the folder of inputs and {o} for an output folder that does not exist yet; and what is named.
GENERATE = "generate --main {p}/main.safetensors --seeds 0-1 --steps 2 --out {o} --device cpu"
EVALUATE = "evaluate {p}/images --ref {p}/images --features pixels --device cpu"
MISTAKES: list[tuple[str, str]] = [
    ("", "Usage"),
    ("nonsense", "No such command 'nonsense'"),
    *[(f"{verb} --nonsense", "No such option") for verb in VERBS if verb != "data"],
    ("data inspect --nonsense", "No such option"),
    # a path that is missing
    ("run {p}/nowhere --out {o}", "nowhere"),
    ("data inspect {p}/nowhere", "nowhere"),
    ("train {p}/nowhere --out {o}", "nowhere"),
    ("ema {p}/nowhere --std 0.07", "nowhere"),
    ("generate --main {p}/nowhere --out {o}", "nowhere"),
    ("generate --main {p}/nowhere.safetensors --out {o}", "nowhere"),
    ("generate --pair {p}/nowhere.json --out {o}", "nowhere"),
    ("generate --main {p}/main.safetensors --guide {p}/nowhere --weight 2 --out {o}", "nowhere"),
    ("stats {p}/nowhere --features pixels --out {o}/s.npz", "nowhere"),
    ("evaluate {p}/nowhere --ref {p}/images", "nowhere"),
    ("evaluate {p}/images --ref {p}/nowhere", "nowhere"),
    ("report {p}/nowhere --out {o}/r.html", "nowhere"),
    # an empty folder
    ("run {p}/empty --out {o}", "empty"),
    ("data inspect {p}/empty", "empty"),
    ("train {p}/empty --out {o}", "empty"),
    ("ema {p}/empty --std 0.07", "empty"),
    ("generate --main {p}/empty --out {o}", "empty"),
    ("generate --pair {p}/empty --out {o}", "empty"),
    ("stats {p}/empty --features pixels --out {o}/s.npz", "empty"),
    ("evaluate {p}/empty --ref {p}/images", "empty"),
    ("report {p}/empty --out {o}/r.html", "empty"),
    # a corrupt image
    ("run {p}/corrupt --out {o}", "b/3.png"),
    ("data inspect {p}/corrupt", "b/3.png"),
    ("train {p}/corrupt --out {o}", "b/3.png"),
    ("stats {p}/corrupt --features pixels --out {o}/s.npz", "b/3.png"),
    ("evaluate {p}/corrupt --ref {p}/images --features pixels", "3.png"),
    ("evaluate {p}/images --ref {p}/corrupt --features pixels", "3.png"),
    # a truncated or foreign file
    ("generate --main {p}/cut.safetensors --out {o}", "cut.safetensors"),
    ("generate --main {p}/main.safetensors --guide {p}/cut.safetensors --weight 2 --out {o}", "cut.safetensors"),
    ("generate --pair {p}/bad.json --out {o}", "bad.json"),
    ("evaluate {p}/bad.npz --ref {p}/images", "bad.npz"),
    ("evaluate {p}/images --ref {p}/bad.npz", "bad.npz"),
    ("train {p}/bad.npz --out {o}", "bad.npz"),
    ("stats {p}/images --features classifier:{p}/cut.safetensors --out {o}/s.npz", "cut.safetensors"),
    # models that do not fit
    (
        "generate --main {p}/main.safetensors --guide {p}/r16.safetensors --weight 2 --out {o}",
        "resolution 8 against 16",
    ),
    ("generate --main {p}/main.safetensors --guide {p}/rgb.safetensors --weight 2 --out {o}", "channels 1 against 3"),
    ("generate --main {p}/main.safetensors --guide {p}/c4.safetensors --weight 2 --out {o}", "classes 3 against 4"),
    ("generate --main {p}/main.safetensors --guide {p}/u.safetensors --weight 2 --out {o}", "classes 3 against 0"),
    (
        "generate --main {p}/main.safetensors --guide {p}/sd.safetensors --weight 2 --out {o}",
        "sigma_data 0.5 against 0.7",
    ),
    (
        "generate --main {p}/main.safetensors --unconditional {p}/c4.safetensors --cfg-weight 2 --out {o}",
        "has 4 classes",
    ),
    ("generate --main {p}/u.safetensors --cfg-weight 2 --out {o}", "class-conditional"),
    (
        "evaluate --main {p}/main.safetensors --guide {p}/r16.safetensors --weight 2 --ref {p}/images --features pixels",
        "resolution",
    ),
    # out of range
    (f"{GENERATE} --guide {{p}}/main.safetensors --weight -1", "weight -1"),
    (f"{GENERATE} --guide {{p}}/main.safetensors --weight nan", "weight nan"),
    (f"{GENERATE} --guide {{p}}/main.safetensors --weight 1e9", "out of range"),
    (f"{GENERATE} --guide {{p}}/main.safetensors --weight much", "Invalid value for '--weight'"),
    (f"{GENERATE} --guide {{p}}/main.safetensors", "--guide needs --weight"),
    (f"{GENERATE} --weight 2", "without a guide"),
    (f"{GENERATE} --cfg-weight -0.5", "weight -0.5"),
    (f"{GENERATE} --unconditional {{p}}/u.safetensors", "needs --cfg-weight"),
    (f"{GENERATE} --interval 2,1", "interval"),
    (f"{GENERATE} --interval 2", "--interval '2'"),
    (f"{GENERATE} --sigma-min 0", "sigma_min 0"),
    (f"{GENERATE} --sigma-max -1", "sigma_max -1"),
    (f"{GENERATE} --sigma-max nan", "sigma_max nan"),
    (f"{GENERATE} --rho 0", "rho is 0"),
    (f"{GENERATE} --steps 0", "num_steps is 0"),
    (f"{GENERATE} --churn 1,2", "--churn '1,2'"),
    (f"{GENERATE} --churn -1,0,1,1", "churn is -1"),
    (f"{GENERATE} --seeds 5-1", "runs backwards"),
    (f"{GENERATE} --seeds 0-99999999999", "more than 100000000"),
    (f"{GENERATE} --classes 7", "from 0 to 2"),
    (f"{GENERATE} --classes cat", "'cat'"),
    (f"{GENERATE} --batch 0", "batch size 0"),
    (f"{GENERATE} --format jpg", "'jpg'"),
    (f"{GENERATE} --device abacus", "abacus"),
    (f"{GENERATE} --noise-device abacus", "abacus"),
    (f"{GENERATE} --dtype int8", "int8"),
    (f"{GENERATE} --dtype float16", "needs a GPU"),
    (f"{GENERATE} --solver dpm", "'dpm'"),
    (f"{GENERATE} --pair {{p}}/pair.json", "either --pair or --main"),
    ("generate --out {o}", "either --pair or --main"),
    ("generate --main hf://owner/repo --out {o}", "hf://owner/repo"),
    ("generate --main {p}/run@0.9 --out {o}", "0.9"),
    ("generate --main {p}/run@0.07:5 --out {o}", "no snapshot at 5 images"),
    ("ema {p}/run --std 0.9", "0.9"),
    ("ema {p}/run --std wide", "'wide'"),
    ("ema {p}/run --std 0.0505", "three decimals"),
    ("ema {p}/run --std 0.05,...", "0.05,..."),
    ("ema {p}/run --std 0.07 --at 5 --out {o}", "no snapshot at 5 images"),
    ("ema {p}/run --std 0.07 --at lots --out {o}", "'lots'"),
    ("run {p}/images --minutes 0 --out {o}", "--minutes 0"),
    ("run {p}/images --minutes -1 --out {o}", "--minutes -1"),
    ("run {p}/images --minutes nan --out {o}", "--minutes nan"),
    ("run {p}/images --processes 0 --out {o}", "--processes"),
    ("run {p}/images --seed -1 --out {o}", "--seed"),
    ("run {p}/images --preset giant --out {o}", "giant"),
    ("run {p}/images --device abacus --out {o}", "abacus"),
    ("run {p}/images --resolution 0 --out {o}", "resolution"),
    ("train {p}/images --images 0 --out {o}", "'0'"),
    ("train {p}/images --images many --out {o}", "'many'"),
    ("train {p}/images --batch 0 --out {o}", "batch"),
    ("train {p}/images --preset giant --out {o}", "giant"),
    ("train {p}/images --set colour=red --out {o}", "colour"),
    ("train {p}/images --device abacus --out {o}", "abacus"),
    (f"{EVALUATE} --repeats 0", "--repeats 0"),
    (f"{EVALUATE} --num 1", "--num 1"),
    (f"{EVALUATE} --features dreams", "dreams"),
    ("stats {p}/images --features dreams --out {o}/s.npz", "dreams"),
    # an output that cannot be written
    ("run {p}/images --out {p}/file", "file"),
    ("train {p}/images --out {p}/file", "file"),
    ("ema {p}/run --std 0.07 --out {p}/file", "file"),
    ("generate --main {p}/main.safetensors --seeds 0 --steps 2 --out {p}/file", "file"),
    ("generate --main {p}/main.safetensors --seeds 0 --steps 2 --out {p}/file/below", "file"),
    ("stats {p}/images --features pixels --out {p}/file/s.npz", "file"),
    (f"{EVALUATE} --out {{p}}/file/result.json", "file"),
    (f"{EVALUATE} --out {{p}}/empty", "empty"),
    ("report {p}/run --out {p}/file/r.html", ""),
    ("toy --out {p}/file", "file"),
]


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str]) -> Callable[[list[str]], tuple[int, str, str]]:
    def run(arguments: list[str]) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main(arguments)
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return run


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


Call = Callable[[list[str]], tuple[int, str, str]]


@pytest.mark.parametrize(("command", "named"), MISTAKES, ids=[command for command, _ in MISTAKES])
def test_mistake(place: Path, tmp_path: Path, call: Call, command: str, named: str) -> None:
    before = contents(place)
    arguments = [part.format(p=place, o=tmp_path / "out") for part in command.split()]
    code, out, err = call(arguments)
    assert code == 2, (out, err)
    assert "Traceback" not in err + out
    if arguments:
        lines = err.strip().split("\n")
        assert len(lines) == 1, err
        assert lines[0].startswith("autoguidance: ")
        assert named.replace("\\", "/") in lines[0]
    else:
        assert "Usage" in err
    assert contents(place) == before
    # nothing that looks like a result
    assert not [p for p in (tmp_path / "out").rglob("*") if p.suffix in (".png", ".npz", ".html", ".safetensors")]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
@pytest.mark.parametrize("verb", ["run {p}/images", "train {p}/images", "generate --main {p}/main.safetensors", "toy"])
def test_output_folder_without_permission(place: Path, tmp_path: Path, call: Call, verb: str) -> None:
    (tmp_path / "shut").mkdir(mode=0o500)
    code, _, err = call([*verb.format(p=place).split(), "--out", str(tmp_path / "shut")])
    assert code == 2
    assert err.count("\n") == 1
    assert "shut" in err


def test_earlier_results_stay(place: Path, tmp_path: Path, call: Call) -> None:
    out = tmp_path / "out"
    options = ["--seeds", "0-2", "--steps", "2", "--device", "cpu", "--out", str(out)]
    assert call(["generate", "--main", f"{place}/main.safetensors", *options])[0] == 0
    before = contents(out)
    assert {"000000.png", "000002.png", "generation.json"} <= before.keys()
    for changed in (
        ["--steps", "3"],
        ["--format", "npz"],
        ["--classes", "1"],
        ["--cfg-weight", "2"],
        ["--dtype", "bfloat16"],
    ):
        code, _, err = call(["generate", "--main", f"{place}/main.safetensors", *options, *changed])
        assert code == 2
        assert "choose another output folder" in err
        assert contents(out) == before
    code, stdout, _ = call(["generate", "--main", f"{place}/main.safetensors", *options])
    assert code == 0
    assert "3 images (0 new)" in stdout
    assert contents(out) == before


def test_a_mistyped_first_run_does_not_bind_the_folder(place: Path, tmp_path: Path, call: Call) -> None:
    out = tmp_path / "out"
    assert call(["run", f"{place}/images", "--preset", "giant", "--out", str(out)])[0] == 2
    assert call(["run", f"{place}/images", "--minutes", "0", "--out", str(out)])[0] == 2
    code, _, err = call(["run", f"{place}/images", "--preset", "gigantic", "--out", str(out)])
    assert code == 2
    assert "gigantic" in err  # the new mistake is named, not "other settings"


def test_run_leaves_foreign_folders_alone(place: Path, tmp_path: Path, call: Call) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    code, _, err = call(["run", f"{place}/images", "--out", str(tmp_path)])
    assert code == 2
    assert "is not empty and holds no run (thesis.txt)" in err
    assert (tmp_path / "thesis.txt").read_text() == "mine"
    assert not (tmp_path / "run.json").exists()


def test_a_damaged_log_of_a_run_is_named(place: Path, tmp_path: Path, call: Call) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name, text in (("run.json", "[]"), ("plan.json", "{}")):
        (out / name).write_text(text)
    code, _, err = call(["run", f"{place}/images", "--out", str(out)])
    assert code == 2
    assert err.count("\n") == 1


@pytest.mark.parametrize("verb", [[verb] for verb in VERBS] + [["data", "inspect"]])
def test_help_has_an_example(verb: list[str], call: Call) -> None:
    code, out, err = call([*verb, "--help"])
    assert (code, err) == (0, "")
    if verb != ["data"]:
        assert f"autoguidance {' '.join(verb)}" in " ".join(out.split())


def test_evaluate_json_is_json(place: Path, call: Call) -> None:
    code, out, _ = call(f"evaluate {place}/images --ref {place}/images --features pixels --device cpu --json".split())
    assert code == 0
    content = json.loads(out)
    assert content["rows"][0]["fd"] == pytest.approx(0, abs=1e-6)
