"""A published file gives the same network, and the same images, as the reference program's.

The files are written by the tests (support/edm2_files.py) from the golden networks, whose outputs the reference program computed.
The sampler that images are compared with is written out below, in float64, from Karras et al. 2022, arXiv 2206.00364, Algorithm 1.
"""

import itertools
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from edm2_files import RAW_MEAN, RAW_STD, Persistent, network_objects, reference_objects, vae_encoder, write_network
from edm2_files import dumps as write_pickle
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

import autoguidance as ag
from autoguidance.errors import UserError
from autoguidance.interop.edm2 import read_network, read_reference
from autoguidance.models import Precond, assemble_model, build_model
from autoguidance.sample import Heun
from autoguidance.sample.sampler import image_encoder

Golden = Callable[[str], Path]
NAMES = ("cond", "uncond", "guide")
# The choices that a published file may have made; the reader may not tell them apart.
WRITERS: dict[str, dict[str, Any]] = {
    "protocol 4": {},
    "names by GLOBAL": {"text_globals": True},
    "protocol 5": {"protocol": 5},
    "storages in zip form": {"zip_storages": True},
    "numpy 2": {"old_numpy": False},
}


def golden_config(golden: Golden, name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    path = golden(f"net-{name}.weights.safetensors")
    with safe_open(str(path), "pt") as file:
        return json.loads(file.metadata()["config"]), load_file(path)


def publish(path: Path, config: Mapping[str, Any], weights: Mapping[str, Tensor], **options: Any) -> Path:
    encoder = vae_encoder() if config["img_channels"] == 4 else None
    return write_network(path, config, weights, encoder=encoder, **options)


def load(path: Path) -> Precond:
    return assemble_model(*read_network(path))


def direct(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Precond:
    """The network without any file."""
    model = build_model(config).eval().requires_grad_(False)
    model.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    return model


def random_network(config: Mapping[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """Weights with the gains set, so that every path counts."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        weights = {name: tensor.detach() for name, tensor in build_model(config).state_dict().items()}
    return {name: torch.tensor(0.6) if tensor.ndim == 0 else tensor for name, tensor in weights.items()}


def relative_error(value: Tensor, expected: Tensor) -> float:
    assert value.shape == expected.shape
    return float((value - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("name", NAMES)
def test_denoised_is_the_references(name: str, writer: str, golden: Golden, tmp_path: Path) -> None:
    config, weights = golden_config(golden, name)
    io = load_file(golden(f"net-{name}.io.safetensors"))
    path = publish(tmp_path / "net-0001024-0.050.pkl", config, weights, dtype=None, **WRITERS[writer])
    model = load(path)
    with torch.no_grad():
        assert relative_error(model(io["x"], io["sigma"], io.get("labels")), io["denoised"]) <= 1e-5
        assert relative_error(model.logvar(io["sigma"]), io["logvar"]) <= 1e-5
        if "denoised_null_label" in io:
            assert relative_error(model(io["x"], io["sigma"]), io["denoised_null_label"]) <= 1e-5
    # Bit for bit the weights that were written.
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, weights[key]), key


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_weights_are_widened_exactly(name: str, golden: Golden, tmp_path: Path) -> None:
    config, weights = golden_config(golden, name)
    info, stored = read_network(publish(tmp_path / "net.pkl", config, weights))
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    model = assemble_model(info, stored)
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}
    rounded = direct(config, {key: tensor.half() for key, tensor in weights.items()})
    io = load_file(golden(f"net-{name}.io.safetensors"))
    with torch.no_grad():
        result = model(io["x"], io["sigma"], io.get("labels"))
        assert torch.equal(result, rounded(io["x"], io["sigma"], io.get("labels")))
        # And rounding to half precision costs what it must: the file is the same network.
        assert 0 < relative_error(result, io["denoised"]) < 2e-2


@pytest.mark.parametrize(
    ("given", "left_out"),
    [
        (
            {"img_resolution": 16, "img_channels": 3, "label_dim": 5, "model_channels": 64, "num_blocks": 1},
            {"channel_mult": [1, 2, 3, 4], "attn_resolutions": [16, 8], "channels_per_head": 64, "label_balance": 0.5},
        ),
        (
            {"img_resolution": 4, "img_channels": 4, "label_dim": 0, "model_channels": 16, "channels_per_head": 16}
            | {"channel_mult": [1]},
            {"num_blocks": 3, "concat_balance": 0.5, "res_balance": 0.3, "attn_balance": 0.3, "clip_act": 256},
        ),
        (
            {"img_resolution": 8, "img_channels": 3, "label_dim": 0, "channel_mult": [1], "num_blocks": 0},
            {"model_channels": 192, "sigma_data": 0.5, "logvar_channels": 128, "use_fp16": True, "dropout": 0},
        ),
    ],
)
def test_missing_arguments_take_the_defaults(given: dict[str, Any], left_out: dict[str, Any], tmp_path: Path) -> None:
    weights = {name: tensor.half() for name, tensor in random_network({**given, **left_out}).items()}
    model = load(publish(tmp_path / "net.pkl", given, weights))
    expected = direct({**given, **left_out}, weights)
    generator = torch.Generator().manual_seed(0)
    size = given["img_resolution"]
    x = torch.randn(2, given["img_channels"], size, size, generator=generator) * 3
    labels = torch.eye(given["label_dim"])[:2] if given["label_dim"] else None
    with torch.no_grad():
        sigma = torch.tensor([0.3, 5.0])
        assert torch.equal(model(x, sigma, labels), expected(x, sigma, labels))


def test_positional_arguments_count(tmp_path: Path) -> None:
    config = {"img_resolution": 4, "img_channels": 3, "label_dim": 2, "model_channels": 4, "channel_mult": [1]}
    config |= {"num_blocks": 1, "channels_per_head": 4, "attn_resolutions": []}
    weights = random_network(config)

    keywords = {
        key: value for key, value in config.items() if key not in ("img_resolution", "img_channels", "label_dim")
    }
    top = network_objects(keywords, weights, args=(4, 3, 2), dtype=None)
    path = tmp_path / "net.pkl"
    path.write_bytes(write_pickle(top))
    info, _ = read_network(path)
    assert {key: info.config[key] for key in config} == config


def heun_in_float64(
    denoise: Callable[[Tensor, Tensor], Tensor], noise: Tensor, steps: int = 32, low: float = 0.002, high: float = 80.0
) -> Tensor:
    """Algorithm 1 without churn: t_i falls from `high` to `low` evenly in t^(1/7), then 0."""
    ramp = np.arange(steps) / (steps - 1)
    times = [*((high ** (1 / 7) + ramp * (low ** (1 / 7) - high ** (1 / 7))) ** 7), 0.0]
    x = noise.double() * times[0]
    for now, later in itertools.pairwise(times):
        slope = (x - denoise(x, torch.full((len(x),), now)).double()) / now
        ahead = x + (later - now) * slope
        if later > 0:
            slope_ahead = (ahead - denoise(ahead, torch.full((len(x),), later)).double()) / later
            ahead = x + (later - now) * (slope + slope_ahead) / 2
        x = ahead
    return x


def pixels(x: Tensor) -> Tensor:
    return (x * 127.5 + 128).clip(0, 255).to(torch.uint8)


@pytest.mark.parametrize("weight", [1.0, 2.0])
@pytest.mark.parametrize("kind", ["cond", "uncond"])
def test_images_for_the_same_seeds(
    kind: str, weight: float, golden: Golden, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Networks run at one batch shape, the last batch padded: 64 such small images, where four show the same.
    monkeypatch.setattr(sys.modules[image_encoder.__module__], "_CPU_BUDGET", (64 * 64 * 16, 4))
    seeds = [0, 7, 123456]
    config, weights = golden_config(golden, kind)
    if kind == "cond":
        guide_config, guide_weights = golden_config(golden, "guide")
    else:
        guide_config = {
            **config,
            "model_channels": 8,
            "num_blocks": 1,
            "channel_mult": [1, 1, 1],
            "channel_mult_emb": None,
        }
        guide_weights = random_network(guide_config, seed=4)

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        main = main_direct(x.float(), sigma.float(), labels)
        if weight == 1:
            return main
        guide = guide_direct(x.float(), sigma.float(), labels)
        return guide + weight * (main - guide)

    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    size = config["img_resolution"]
    noise = torch.stack([torch.randn(config["img_channels"], size, size, generator=g) for g in generators])
    labels = None
    if config["label_dim"]:
        classes = torch.stack([torch.randint(config["label_dim"], (), generator=g) for g in generators])
        labels = torch.eye(config["label_dim"])[classes]
    main_direct, guide_direct = direct(config, weights), direct(guide_config, guide_weights)
    with torch.no_grad():
        expected = heun_in_float64(denoise, noise)

    main = load(publish(tmp_path / "main.pkl", config, weights, dtype=None))
    denoiser: Any = main
    if weight != 1:
        guide = load(publish(tmp_path / "guide.pkl", guide_config, guide_weights, dtype=None))
        denoiser = ag.Autoguidance(main, guide, weight)
    latents = ag.sample(denoiser, seeds, decode=False)
    assert relative_error(latents.double(), expected) <= 1e-4  # float32 over 63 evaluations
    images = image_encoder(denoiser).decode(latents) if config["img_channels"] == 3 else pixels(latents)
    assert (images.int() - pixels(expected).int()).abs().max() <= 1
    # The comparison means something only if the images are neither flat nor all clipped, and the guide differs.
    assert expected.std() > 0.05
    assert ((images > 0) & (images < 255)).float().mean() > 0.2
    with torch.no_grad():
        x, sigma = noise * 2, torch.ones(len(seeds))
        assert relative_error(guide_direct(x, sigma, labels), main_direct(x, sigma, labels)) > 1e-2


@pytest.mark.parametrize(("key", "weight"), [("unguided", 1.0), ("autoguidance_w2", 2.0)])
def test_golden_runs(key: str, weight: float, golden: Golden, tmp_path: Path) -> None:
    main, guide = (
        load(publish(tmp_path / f"{name}.pkl", *golden_config(golden, name), dtype=None)) for name in ("cond", "guide")
    )
    start = load_file(golden("seeds.safetensors"))
    labels = torch.nn.functional.one_hot(start["class_idx"], 10).float()
    with torch.no_grad():
        result = Heun(num_steps=8).integrate(ag.Autoguidance(main, guide, weight), start["noise"], labels)
    assert relative_error(result, load_file(golden("sampler.safetensors"))[key]) <= 1e-5


SMALL: dict[str, Any] = {
    "img_resolution": 4,
    "img_channels": 4,
    "label_dim": 2,
    "model_channels": 4,
    "channel_mult": [1],
}
SMALL |= {"num_blocks": 1, "channels_per_head": 4, "attn_resolutions": []}


@pytest.mark.parametrize("old_numpy", [True, False])
def test_what_a_file_says_about_itself(old_numpy: bool, tmp_path: Path) -> None:
    path = publish(tmp_path / "edm2-img512-xs-0134217-0.125.pkl", SMALL, random_network(SMALL), old_numpy=old_numpy)
    info, _ = read_network(path)
    assert info.num_images == (134217 * 1000 + 999) // 1024 * 1024
    assert info.num_images == 2**27  # 128 Mi images
    assert info.ema_std == 0.125
    assert info.licence == "CC-BY-NC-SA-4.0"
    assert info.encoder is not None
    assert info.encoder["name"] == "vae"
    assert info.encoder["vae"] == "stabilityai/sd-vae-ft-mse"
    # In the file are float32 scale and bias; the constants have three digits.
    assert info.encoder["raw_mean"] == pytest.approx(RAW_MEAN, abs=1e-5)
    assert info.encoder["raw_std"] == pytest.approx(RAW_STD, abs=1e-5)
    renamed = path.rename(tmp_path / "mine.pkl")
    info, _ = read_network(renamed)
    assert (info.num_images, info.ema_std) == (0, None)
    config = {**SMALL, "img_channels": 3}
    info, _ = read_network(publish(tmp_path / "rgb.pkl", config, random_network(config)))
    assert info.encoder is not None
    assert info.encoder["name"] == "pixels"


def test_old_protocols_are_refused_by_name(tmp_path: Path) -> None:
    # Protocols 2 and 3 write an empty set as a call of builtins.set, which is not on the list; no published file is so old.
    for protocol in (2, 3):
        path = publish(tmp_path / f"{protocol}.pkl", SMALL, random_network(SMALL), protocol=protocol)
        with pytest.raises(UserError, match=r"builtin.*\.set|_codecs\.encode"):
            load(path)


def test_the_writer_leaves_no_trace(tmp_path: Path) -> None:
    publish(tmp_path / "net.pkl", SMALL, random_network(SMALL))
    assert not {"dnnlib", "dnnlib.util", "torch_utils", "torch_utils.persistence"} & sys.modules.keys()


@pytest.mark.parametrize("protocol", [3, 4])
@pytest.mark.parametrize("old_numpy", [True, False])
def test_reference_statistics(protocol: int, old_numpy: bool, tmp_path: Path) -> None:
    content = reference_objects(features=12, dino=5)
    path = tmp_path / "img64.pkl"
    path.write_bytes(write_pickle(content, protocol, old_numpy=old_numpy))
    found = {reference.features: reference for reference in read_reference(path)}
    assert found.keys() == {"inception", "dinov2"}
    for key, name in (("fid", "inception"), ("fd_dinov2", "dinov2")):
        assert found[name].num_images == content["num_images"]
        assert found[name].mean.dtype == found[name].covariance.dtype == np.float64
        assert np.array_equal(found[name].mean, content[key]["mu"])
        assert np.array_equal(found[name].covariance, content[key]["sigma"])


def test_reference_statistics_without_a_metric(tmp_path: Path) -> None:
    content = reference_objects()
    del content["fd_dinov2"]
    path = tmp_path / "ref.pkl"
    path.write_bytes(write_pickle(content))
    (reference,) = read_reference(path)
    assert reference.features == "inception"
    arrays = tmp_path / "ref.npz"
    np.savez(arrays, **content["fid"])
    (reference,) = read_reference(arrays)
    assert np.array_equal(reference.covariance, content["fid"]["sigma"])


def test_an_object_of_an_unknown_class_beside_the_network_is_data(tmp_path: Path) -> None:
    """The loss's class, or the data's, is not our business: it is never made, so it need not be known."""

    top = network_objects(SMALL, random_network(SMALL))
    top["encoder"] = vae_encoder()
    top["loss_fn"] = Persistent("SomeLoss", {"P_mean": -0.8}, "raise SystemExit")
    path = tmp_path / "net.pkl"
    path.write_bytes(write_pickle(top))
    assert read_network(path)[0].config["model_channels"] == 4
