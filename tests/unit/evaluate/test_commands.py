"""`autoguidance stats` and `autoguidance evaluate` on images."""

import importlib
import json

import numpy as np
import pytest
import torch

from autoguidance.cli.common import app
from autoguidance.data import open_data
from autoguidance.errors import UserError
from autoguidance.evaluate import PixelFeatures, Statistics, classifier_training, frechet_distance, load_classifier
from autoguidance.models.files import ModelInfo, save_model
from autoguidance.models.precond import build_model
from autoguidance.storage import read_json


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    for verb in ("generate", "stats", "evaluate"):
        importlib.import_module(f"autoguidance.cli.{verb}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AUTOGUIDANCE_CACHE", str(tmp_path / "cache"))

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
        save(tmp_path / f"{name}.safetensors", seed)
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


def counted(monkeypatch):
    """Images that the pixel network sees from now on."""
    seen = []
    original = PixelFeatures.__call__
    monkeypatch.setattr(PixelFeatures, "__call__", lambda self, x: seen.append(len(x)) or original(self, x))
    return seen


def test_all_metrics_repeats_and_several_networks(run, images, tmp_path, monkeypatch):
    monkeypatch.setattr(classifier_training, "_MAX_EPOCHS", 1)  # any classifier will do
    measure = ["--features", "pixels,classifier", "--num", 200, "--repeats", 3, "--metrics", "prdc,fd,kid", "--json"]
    result = json.loads(run("evaluate", images, *measure, "--num-real", 500))
    row = result["rows"][0]
    assert list(row["features"]) == ["pixels", "classifier"]
    for figures in (row, *row["features"].values()):
        for name in ("fd", "kid", "precision", "recall", "density", "coverage"):
            repeats = figures[f"{name}_repeats"]
            assert len(repeats) == 3
            assert figures[name] == pytest.approx(np.mean(repeats))
            assert figures[f"{name}_std"] == pytest.approx(np.std(repeats, ddof=1), abs=1e-12)
            assert figures[f"{name}_min"] == min(repeats)
    assert row["fd"] == row["features"]["pixels"]["fd"]
    metrics = result["protocol"]["metrics"]
    assert metrics["kid"] == {"subsets": 100, "subset_size": 200, "seed": 2020, "num_real": 500}
    assert metrics["prdc"] == {"neighbours": {"precision_recall": 3, "density_coverage": 5}, "num_real": 500}
    # The classifier of a set that is no path of the user's goes into the cache, not into the working folder.
    assert list((tmp_path / "cache" / "classifiers").glob("digits.classifier-*.safetensors"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "images.npz"]
    text = run("evaluate", images, "--features", "pixels", "--metrics", "kid,prdc", "--num", 200, "--repeats", 3)
    assert "Fréchet" not in text
    assert "over 3 repeats, least" in text


def test_a_file_of_stats_serves_all_metrics_if_it_keeps_features(run, images):
    run("stats", "digits", "--features", "pixels", "--out", "ref.npz")
    with pytest.raises(UserError, match="give --ref DATA, or make the file by `autoguidance stats --keep-features`"):
        run("evaluate", images, "--ref", "ref.npz", "--metrics", "fd,kid")
    run("stats", "digits", "--features", "pixels", "--out", "kept.npz", "--keep-features", 50000)
    measure = ["--metrics", "fd,kid,prdc", "--json", "--no-cache"]
    stored = json.loads(run("evaluate", images, "--ref", "kept.npz", *measure))
    direct = json.loads(run("evaluate", images, "--ref", "digits", "--features", "pixels", *measure))
    assert stored == direct


def test_a_second_measurement_computes_nothing(run, images, tmp_path, monkeypatch):
    seen = counted(monkeypatch)
    measure = ["evaluate", images, "--features", "pixels", "--metrics", "fd,prdc", "--repeats", 2, "--json"]
    first = run(*measure)
    assert sum(seen) == 64 * (29 + 5 + 5)  # 1797 and twice 300, in micro-batches
    assert run(*measure) == first
    assert sum(seen) == 64 * 39
    assert run(*measure, "--no-cache") == first
    assert sum(seen) == 64 * 78
    pixels = np.load(images)["images"]
    pixels[5, 0, 3, 3] ^= 1  # one pixel of one image: the repeats are other images now
    np.savez(images, images=pixels, seeds=np.arange(600))
    assert run(*measure) != first
    assert sum(seen) == 64 * (78 + 10)
    assert list((tmp_path / "cache" / "feature-sets").iterdir())


def save(path, seed):
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
    encoder = {"name": "pixels", "channels": 1, "resolution": 8}
    save_model(path, model.state_dict(), ModelInfo(config=config, encoder=encoder, class_names=tuple("0123456789")))


def test_generated_images_are_known_again_by_what_makes_them(run, tmp_path, monkeypatch):
    save(tmp_path / "m.safetensors", 0)
    seen = counted(monkeypatch)
    base = ["evaluate", "--features", "pixels", "--num", 10, "--json", "--main", "m.safetensors"]

    def fresh(*arguments):
        before = len(seen)
        run(*base, "--steps", 2, *arguments)
        return len(seen) - before

    assert fresh() > 1  # the reference, and these images
    assert fresh() == 0
    assert fresh("--batch", 7) == 0
    assert fresh("--repeats", 2) == 1  # only the second ten
    for other in (("--steps", 3), ("--classes", "balanced"), ("--first-seed", 5), ("--dtype", "bfloat16")):
        assert fresh(*other) == 1, other
    save(tmp_path / "m.safetensors", 1)  # the same name, another model
    assert fresh() == 1


def test_results_are_compared_only_where_they_may_be(run, images, tmp_path):
    measure = ["evaluate", images, "--features", "pixels"]
    run(*measure, "--num", 200, "--out", "a.json")
    result = json.loads(run(*measure, "--num", 200, "--repeats", 3, "--compare", "a.json", "--out", "b.json", "--json"))
    assert read_json(tmp_path / "b.json") == result
    rows = result["comparison"]["rows"]
    assert [row["result"] for row in rows] == ["a.json", "b.json"]
    assert rows[0]["fd"] == rows[1]["fd"] / (1 + rows[1]["fd_change"])
    with pytest.raises(UserError, match=r"a\.json and this result: .*num_images: 200 against 300.*--force"):
        run(*measure, "--num", 300, "--compare", "a.json", "--out", "c.json")
    assert not (tmp_path / "c.json").exists()
    forced = json.loads(run(*measure, "--num", 300, "--compare", "a.json", "--force", "--out", "c.json", "--json"))
    assert forced["comparison"]["different"] == ["num_images"]
    assert "not measured alike (num_images)" in run(*measure, "--num", 300, "--compare", "a.json", "--force")
    # Finished results alone.
    assert "+0.0 %" in run("evaluate", "--compare", "a.json", "--compare", "a.json")
    with pytest.raises(UserError, match="num_images"):
        run("evaluate", "--compare", "a.json", "--compare", "c.json")
    with pytest.raises(UserError, match="or two results by --compare"):
        run("evaluate", "--compare", "a.json")


def test_mistakes_about_what_is_measured_show_before_the_reference_is_made(run, images, tmp_path, monkeypatch):
    seen = counted(monkeypatch)
    (tmp_path / "folder").mkdir()
    save(tmp_path / "m.safetensors", 0)
    for arguments, message in (
        ((images, "--out", "folder"), "folder is a folder"),
        ((images, "--out", "images.npz/result.json"), "images.npz"),
        ((images, "--num", 400, "--repeats", 2), "2 x 400 images are needed"),
        (("--main", "m.safetensors", "--guide", "absent.safetensors", "--weight", 2), "absent"),
        ((images, "--metrics", "fid"), "fd, kid, prdc"),
        ((images, "--metrics", "fd,,kid"), "empty name"),
        ((images, "--compare", "absent.json"), "absent.json"),
        ((images, "--num-real", 1), "at least 2"),
    ):
        with pytest.raises(UserError, match=message) as error:
            run("evaluate", *arguments, "--features", "pixels")
        assert "\n" not in str(error.value)
    assert not seen


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("evaluate",), "either IMAGES or what to generate"),
        (("evaluate", "absent", "--features", "pixels"), "absent"),
        (("evaluate", "images.npz", "--ref", "absent"), "absent"),
        (("evaluate", "images.npz", "--features", "nonsense"), "unknown feature network 'nonsense'"),
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
