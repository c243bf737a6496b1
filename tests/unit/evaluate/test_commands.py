"""`autoguidance stats` and `autoguidance evaluate` on images."""

import importlib
import json

import numpy as np
import pytest
import torch

from autoguidance.cli.common import app
from autoguidance.data import open_data
from autoguidance.errors import UserError
from autoguidance.evaluate import Statistics, frechet_distance, load_classifier
from autoguidance.models.files import ModelInfo, save_model
from autoguidance.models.precond import build_model
from autoguidance.storage import read_json


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    for verb in ("generate", "stats", "evaluate"):
        importlib.import_module(f"autoguidance.cli.{verb}")
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        app([str(argument) for argument in arguments], prog_name="autoguidance", standalone_mode=False)
        return capsys.readouterr().out

    return call


@pytest.fixture
def images(tmp_path):
    digits = open_data("digits")
    path = tmp_path / "images.npz"
    np.savez(path, images=digits.read(range(600)).numpy(), seeds=np.arange(600), class_idx=digits.class_idx[:600])
    return path


def test_stats_then_evaluate(run, images, tmp_path):
    run("stats", "digits", "--features", "pixels", "--out", "ref.npz")
    assert Statistics.load(tmp_path / "ref.npz").num == 1797
    shown = run("evaluate", images, "--ref", "ref.npz", "--num", 200, "--repeats", 3, "--out", "result.json", "--json")
    result = read_json(tmp_path / "result.json")
    assert json.loads(shown) == result
    row, protocol = result["rows"][0], result["protocol"]
    assert (row["method"], len(row["fd_repeats"])) == ("images", 3)
    digits = open_data("digits")
    real = Statistics.from_features(digits.read(range(1797)).flatten(1) / 255)  # 8x8: the pixels themselves
    made = [Statistics.from_features(digits.read(range(n, n + 200)).flatten(1) / 255) for n in (0, 200, 400)]
    assert row["fd_repeats"] == pytest.approx([frechet_distance(part, real) for part in made], rel=1e-4)
    assert protocol["seeds"] == ["0-199", "200-399", "400-599"]
    assert (protocol["features"], protocol["reference"]) == ("pixels", "digits")
    assert protocol["reference_sha256"] == open_data("digits").fingerprint
    # The reference as data gives the same figures to the last bit.
    again = json.loads(
        run("evaluate", images, "--ref", "digits", "--features", "pixels", "--num", 200, "--repeats", 3, "--json")
    )
    assert again["rows"] == result["rows"]


def test_the_classifier_is_trained_once_and_kept(run, tmp_path):
    generator = np.random.default_rng(0)
    labels = np.arange(60) % 2
    pixels = (generator.integers(0, 100, (60, 1, 8, 8)) + 100 * labels[:, None, None, None]).astype(np.uint8)
    np.savez(tmp_path / "real.npz", images=pixels, labels=labels)
    np.savez(tmp_path / "made.npz", images=pixels[:30])
    first = json.loads(run("evaluate", "made.npz", "--ref", "real.npz", "--features", "classifier,pixels", "--json"))
    (stored,) = tmp_path.glob("real.classifier-*.safetensors")
    network = load_classifier(stored)
    assert network.sha256 == first["protocol"]["features_sha256"]
    assert network.info.fingerprint == first["protocol"]["reference_sha256"]
    assert network.info.held_out_accuracy == 1.0
    assert first["protocol"]["notes"]  # 30 images for 64 features
    changed = stored.stat().st_mtime_ns
    again = json.loads(run("evaluate", "made.npz", "--ref", "real.npz", "--features", f"classifier:{stored}", "--json"))
    assert again["rows"][0]["fd"] == first["rows"][0]["fd"]
    assert stored.stat().st_mtime_ns == changed
    run("stats", "real.npz", "--features", "classifier", "--out", "ref.npz")
    assert stored.stat().st_mtime_ns == changed
    by_file = json.loads(run("evaluate", "made.npz", "--ref", "ref.npz", "--classifier", stored, "--json"))
    assert by_file["rows"][0]["fd"] == first["rows"][0]["fd"]
    with pytest.raises(UserError, match="no classifier is given"):
        run("evaluate", "made.npz", "--ref", "ref.npz")


@pytest.mark.parametrize("form", ["png", "npz"])
def test_a_model_is_measured_like_the_images_that_it_generates(run, tmp_path, form):
    for name, seed in (("main", 0), ("guide", 1)):
        torch.manual_seed(seed)
        config = {
            "img_resolution": 8,
            "img_channels": 1,
            "label_dim": 10,
            "model_channels": 8,
            "channel_mult": [1],
            "num_blocks": 1,
            "channels_per_head": 8,
        }
        model = build_model(config)
        torch.nn.init.constant_(model.unet.out_gain, 1.0)
        info = ModelInfo(
            config=config,
            encoder={"name": "pixels", "channels": 1, "resolution": 8},
            class_names=tuple("0123456789"),
        )
        save_model(tmp_path / f"{name}.safetensors", model.state_dict(), info)
    what = ["--main", "main.safetensors", "--guide", "guide.safetensors", "--weight", 1.5, "--interval", "0.1,5"]
    what += ["--steps", 2, "--classes", "balanced"]
    measure = ["--ref", "digits", "--features", "pixels", "--num", 10, "--repeats", 2, "--json"]
    run("generate", *what, "--seeds", "0-19", "--format", form, "--out", "made")
    images = json.loads(run("evaluate", "made", *measure))
    direct = json.loads(run("evaluate", *what, *measure, "--batch", 7))
    assert images == direct  # rows and protocol, whatever the batch size and the way
    assert direct["rows"][0]["interval"] == [0.1, 5.0]
    assert direct["rows"][0]["method"] == "autoguidance+interval"
    assert direct["protocol"]["class_sampling"] == "balanced"
    assert direct["protocol"]["seeds"] == ["0-9", "10-19"]
    assert direct["protocol"]["solver"]["num_steps"] == 2


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("evaluate",), "either IMAGES or what to generate"),
        (("evaluate", "absent", "--features", "pixels"), "absent"),
        (("evaluate", "images.npz", "--ref", "absent"), "absent"),
        (("evaluate", "images.npz", "--features", "inception"), "unknown feature network 'inception'"),
        (("evaluate", "images.npz", "--features", "classifier:absent"), "absent does not exist"),
        (("evaluate", "images.npz", "--features", "pixels", "--num", "601"), "601 images are needed and 600"),
        (("evaluate", "images.npz", "--features", "pixels", "--repeats", "0"), "at least 1 repeat"),
        (("stats", "images.npz", "--features", "pixels", "--out", "stats.json"), "ends in .npz"),
    ],
)
def test_mistakes_are_one_line(run, images, arguments, message):
    with pytest.raises(UserError, match=message) as error:
        run(*arguments)
    assert "\n" not in str(error.value)
