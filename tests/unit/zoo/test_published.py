"""Published names: the 36 settings of ../shared/spec/edm2-formats.md, the cache, and the licence."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from edm2_files import dumps, reference_objects, vae_encoder, write_network
from PIL import Image

from autoguidance.cli import main
from autoguidance.errors import UserError
from autoguidance.evaluate import Statistics
from autoguidance.models import build_model, load_model, read_model_info
from autoguidance.zoo import PUBLISHED_PAIRS, Pair, cache_folder, file_url, is_cached, load, network_preset
from autoguidance.zoo import imports as zoo_imports
from autoguidance.zoo.published import find_preset, num_parameters

MAIN, GUIDE = "edm2-img64-s-1073741-0.045", "edm2-img64-xs-0134217-0.110"
CONFIG = {
    "img_resolution": 16,
    "img_channels": 3,
    "label_dim": 5,
    "model_channels": 8,
    "channel_mult": [1, 2],
    "num_blocks": 1,
}
CONFIG |= {"attn_resolutions": [], "channels_per_head": 8}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AUTOGUIDANCE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("AUTOGUIDANCE_LICENCE_NOTICE_GIVEN", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Instead of the network: small networks in the published format. Returns the addresses asked for."""
    asked: list[str] = []

    def give(url: str, target: Path, **options: object) -> Path:
        asked.append(url)
        torch.manual_seed(len(asked))
        model = build_model(CONFIG)
        weights = {name: tensor + 0.1 for name, tensor in model.state_dict().items()}
        return write_network(Path(target), CONFIG, weights)

    monkeypatch.setattr(zoo_imports, "fetch", give)
    return asked


def test_every_setting_of_the_spec(shared: Callable[[str], Path]) -> None:
    text = shared("spec/edm2-formats.md").read_text()
    assert len(PUBLISHED_PAIRS) == 36
    # Every figure in parentheses in the list of presets belongs to one setting.
    listed = text[text.index("* edm2-img512-{xs") : text.index("## Datasets")]
    figures = sorted(float(figure) for figure in re.findall(r"\((\d+\.\d+)\)", listed))
    assert sorted(pair.figure for pair in PUBLISHED_PAIRS.values()) == figures
    for pair in PUBLISHED_PAIRS.values():
        for name in pair.networks:
            assert file_url(name).endswith(f"/posthoc-reconstructions/{name}.pkl")
            assert num_parameters(name) > 1e8
            assert network_preset(name).startswith(
                name.split("-0")[0].split("-1")[0].split("-2")[0].removesuffix("-uncond")
            )


def test_the_main_example() -> None:
    pair = Pair.load("preset:edm2-img512-s-autog-fid")
    assert (pair.main, pair.guide) == ("edm2-img512-s-2147483-0.070", "edm2-img512-xs-0134217-0.125")
    assert pair.weight == 2.1
    assert pair.solver is not None
    assert pair.solver.describe()["num_steps"] == 32
    guided = Pair.load("preset:edm2-img512-m-guid-dino")
    assert (guided.unconditional, guided.cfg_weight) == ("edm2-img512-xs-uncond-2147483-0.015", 2.0)


@pytest.mark.parametrize(("name", "millions"), [("edm2-img512-xs-2147483-0.135", 125), ("edm2-img512-s-2147483-0.130", 280),
                                                ("edm2-img512-xxl-0939524-0.070", 1523)])  # fmt: skip
def test_published_sizes(name: str, millions: int) -> None:
    # Parameters in millions as in Table 2 of arXiv 2312.02696.
    assert round(num_parameters(name) / 1e6) == pytest.approx(millions, abs=1)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("preset:edm2-img512-s-autog-fidd", "no such preset"),
        ("edm2-img512-s", "not the name of a published file"),
        ("preset:edm2-img64-s-autog-fid", "is a pair"),
        ("hf://owner/file.pkl", "hf://OWNER/REPOSITORY/FILE.safetensors"),
        ("hf://owner/repo/../../x.safetensors", "hf://OWNER/REPOSITORY/FILE.safetensors"),
    ],
)
def test_names_that_are_not(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(name)


def test_fetched_once_then_verified(fetched: list[str], caplog: pytest.LogCaptureFixture) -> None:
    assert not is_cached(MAIN)
    first = load(MAIN)
    assert is_cached(MAIN)
    second = load(MAIN)
    assert fetched == [f"https://nvlabs-fi-cdn.nvidia.com/edm2/posthoc-reconstructions/{MAIN}.pkl"]
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    path = cache_folder() / "edm2" / f"{MAIN}.safetensors"
    info = read_model_info(path)
    assert info.licence == "CC-BY-NC-SA-4.0"
    assert (info.num_images, info.ema_std) == (1073741824 // 1024 * 1024, 0.045)
    assert info.provenance["source"] == fetched[0]
    assert sum("CC BY-NC-SA" in record.message for record in caplog.records) == 1
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=r"SHA-256 differs.*fetched again"):
        load(MAIN)
    path.unlink()
    load(MAIN)
    assert len(fetched) == 2


def test_a_refused_download_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def give(url: str, target: Path, **options: object) -> Path:
        Path(target).write_bytes(b"<html>not found</html>")
        return Path(target)

    monkeypatch.setattr(zoo_imports, "fetch", give)
    with pytest.raises(UserError, match="does not begin as a pickle"):
        load(MAIN)
    assert not is_cached(MAIN)
    assert not list((cache_folder() / "edm2").glob("*.pkl"))


def test_generate_with_a_published_pair(fetched: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["generate", "--pair", "preset:edm2-img64-s-autog-fid", "--seeds", "0-2", "--steps", "3"]
    assert main([*arguments, "--out", str(tmp_path / "png")]) == 0
    assert [url.rsplit("/", 1)[1] for url in fetched] == [f"{MAIN}.pkl", f"{GUIDE}.pkl"]
    settings = json.loads((tmp_path / "png" / "generation.json").read_text())
    assert settings["licence"] == ["CC-BY-NC-SA-4.0"]
    assert (settings["weight"], settings["main"], settings["guide"]) == (1.7, MAIN, GUIDE)
    with Image.open(tmp_path / "png" / "000002.png") as image:
        assert image.text["License"] == "CC-BY-NC-SA-4.0"
        first = np.asarray(image)
    assert main([*arguments, "--format", "npz", "--out", str(tmp_path / "npz")]) == 0
    with np.load(tmp_path / "npz" / "images.npz") as arrays:
        assert str(arrays["licence"]) == "CC-BY-NC-SA-4.0"
        assert np.array_equal(arrays["images"][2].transpose(1, 2, 0), first)
    assert len(fetched) == 2


def test_the_main_example_with_a_vae(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The 512-pixel pair on latents: stand-ins of a few kilobytes for both networks and for the VAE."""
    kl = pytest.importorskip("diffusers.models.autoencoders.autoencoder_kl", reason="needs the extra vae")
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    sizes = {"block_out_channels": (4,) * 4, "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 2}
    kl.AutoencoderKL(**blocks, **sizes).save_pretrained(tmp_path / "vae", safe_serialization=True)
    config = {**CONFIG, "img_resolution": 64, "img_channels": 4, "label_dim": 1000}

    def give(url: str, target: Path, **options: object) -> Path:
        return write_network(Path(target), config, build_model(config).state_dict(), encoder=vae_encoder())

    monkeypatch.setattr(zoo_imports, "fetch", give)
    monkeypatch.setenv("AUTOGUIDANCE_VAE", str(tmp_path / "nowhere"))
    arguments = ["generate", "--pair", "preset:edm2-img512-s-autog-fid", "--seeds", "0-1", "--steps", "2"]
    arguments += ["--out", str(tmp_path / "out"), "--device", "cpu"]
    assert main(arguments) == 2
    assert "VAE" in capsys.readouterr().err
    assert not is_cached("edm2-img512-s-2147483-0.070")  # found out before anything was fetched
    monkeypatch.setenv("AUTOGUIDANCE_VAE", str(tmp_path / "vae"))
    assert main(arguments) == 0
    for seed in range(2):
        with Image.open(tmp_path / "out" / f"{seed:06d}.png") as image:
            assert image.size == (512, 512)


def test_a_pair_file_keeps_published_names(tmp_path: Path) -> None:
    Pair(main=MAIN, guide=GUIDE, weight=1.7).save(tmp_path / "pair.json")
    again = Pair.load(tmp_path / "pair.json")
    assert (again.main, again.guide) == (MAIN, GUIDE)


def test_import_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    model = build_model(CONFIG)
    source = write_network(tmp_path / "some-0001048-0.050.pkl", CONFIG, model.state_dict())
    out = tmp_path / "x.safetensors"
    assert main(["import", str(source), "--out", str(out)]) == 0
    assert "CC BY-NC-SA 4.0" in capsys.readouterr().out
    x, sigma = torch.randn(2, 3, 16, 16), torch.tensor([0.5, 2.0])
    rounded = build_model(CONFIG)
    rounded.load_state_dict({name: tensor.half().float() for name, tensor in model.state_dict().items()})
    with torch.no_grad():
        assert torch.equal(load_model(out)(x, sigma), rounded.eval()(x, sigma))
    assert read_model_info(out).num_images == (1048 * 1000 + 999) // 1024 * 1024
    assert out.stat().st_size < 1.2 * source.stat().st_size  # float16 stays float16
    with pytest.raises(UserError, match="autoguidance import"):
        load(source)


def test_import_of_references(tmp_path: Path) -> None:
    top = reference_objects(features=8, dino=4)
    (tmp_path / "ref.pkl").write_bytes(dumps(top))
    assert main(["import", str(tmp_path / "ref.pkl"), "--out", str(tmp_path / "ref.npz")]) == 0
    for name, metric in (("ref.npz", "fid"), ("ref.dinov2.npz", "fd_dinov2")):
        statistics = Statistics.load(tmp_path / name)
        assert np.array_equal(statistics.mean, top[metric]["mu"])
        assert np.array_equal(statistics.covariance, top[metric]["sigma"])
        assert statistics.num == top["num_images"]
    np.savez(tmp_path / "plain.npz", mu=top["fid"]["mu"], sigma=top["fid"]["sigma"])
    assert main(["import", str(tmp_path / "plain.npz"), "--out", str(tmp_path / "plain-ref.npz")]) == 0
    assert Statistics.load(tmp_path / "plain-ref.npz").num == 0


@pytest.mark.parametrize("out", ["x.pt", "x.npz", "folder/x"])
def test_import_that_cannot_be(out: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_network(tmp_path / "net.pkl", CONFIG, build_model(CONFIG).state_dict())
    assert main(["import", str(source), "--out", str(tmp_path / out)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / out).exists()


def test_models_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert len(content["models"]) == 36
    row = next(row for row in content["models"] if row["name"] == "preset:edm2-img512-s-autog-fid")
    assert (row["figure"], row["weight"], row["cached"]) == (1.34, 2.1, False)
    assert main(["models"]) == 0
    text = capsys.readouterr().out
    assert all(f"preset:{name} " in text for name in PUBLISHED_PAIRS)
    assert "CC BY-NC-SA 4.0" in text
    assert find_preset("preset:edm2-img64-xl-fid").main in text
