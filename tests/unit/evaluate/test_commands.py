"""`autoguidance stats` and `autoguidance evaluate` on images."""

import importlib
import json

import numpy as np
import pytest

from autoguidance.cli.common import app
from autoguidance.data import open_data
from autoguidance.errors import UserError
from autoguidance.evaluate import Statistics, load_classifier
from autoguidance.storage import read_json


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    for verb in ("stats", "evaluate"):
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
    assert 0 < row["fd"] < 0.3
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
