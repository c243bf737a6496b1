"""Presets fit the data they are for, and "one size smaller" is well defined."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from autoguidance.data import open_data
from autoguidance.data.encoders import make_encoder
from autoguidance.errors import UserError
from autoguidance.models.files import load_model, read_model_info
from autoguidance.models.precond import build_model
from autoguidance.sample import Heun, sample
from autoguidance.train.config import TrainConfig
from autoguidance.train.loop import train
from autoguidance.train.presets import ENCODERS, PRESETS, auto_preset, resolve, smaller


def _parameters(config: Any, num_classes: int) -> int:
    encoder = make_encoder(config.encoder)
    keywords = config.network.keywords(
        img_resolution=encoder.img_resolution,
        img_channels=encoder.img_channels,
        num_classes=num_classes,
        use_fp16=False,
    )
    return sum(parameter.numel() for parameter in build_model(keywords).parameters())


@pytest.mark.parametrize("resolution", [8, 9, 12, 16, 20, 24, 27, 28, 32, 45, 48, 64])
@pytest.mark.parametrize("encoder", ["auto", "pixels", "unshuffle2", "pixels-scaled", "dct2", "wavelet2"])
def test_small_presets_fit_every_resolution(make_blocks: Callable[..., Any], resolution: int, encoder: str) -> None:
    source = make_blocks(num_images=4, resolution=resolution, channels=3)
    config = resolve("nano", source, encoder=encoder)
    images = source.read([0, 1])
    latents = make_encoder(config.encoder).encode(images)
    levels = len(config.network.channel_mult)
    assert latents.shape[-1] % 2 ** (levels - 1) == 0
    assert 2 <= latents.shape[-1] >> (levels - 1) <= 8
    assert _parameters(config, source.num_classes) > 0
    assert bool((make_encoder(config.encoder).decode(latents) == images).all())


def test_automatic_presets_are_of_the_size_that_a_cpu_trains_in_minutes(make_blocks: Callable[..., Any]) -> None:
    ten = tuple("0123456789")
    digits = resolve(None, make_blocks(resolution=8, class_names=ten))
    assert digits.encoder == {"name": "pixels", "channels": 1, "resolution": 8, "padding": 0}
    assert 0.1e6 < _parameters(digits, 10) < 0.5e6
    fashion = resolve("auto", make_blocks(resolution=28, class_names=ten))
    assert {**fashion.encoder, "mean": None, "std": None} == {
        "name": "dct",
        "factor": 2,
        "channels": 1,
        "resolution": 28,
        "padding": 0,
        "mean": None,
        "std": None,
    }
    assert len(fashion.encoder["std"]) == 4
    for size, name, factor in ((32, "dct", 2), (36, "dct", 2), (37, "lapped", 4)):
        encoder = resolve("auto", make_blocks(resolution=size, channels=3)).encoder
        assert (encoder["name"], encoder["factor"]) == (name, factor)
    assert 1e6 < _parameters(fashion, 10) < 2e6
    assert smaller(auto_preset(28, on_gpu=True)) == fashion.preset == auto_preset(28)
    with pytest.raises(UserError, match="--resolution 64"):
        auto_preset(128)


def test_smaller_goes_down_one_size_within_the_family() -> None:
    assert smaller("base") == "small"
    assert smaller("edm2-img512-s") == "edm2-img512-xs"
    assert smaller("edm2-img64-xl") == "edm2-img64-l"
    for lowest in ("nano", "edm2-img64-xs", "edm2-img512-xxs"):
        with pytest.raises(UserError, match="smallest"):
            smaller(lowest)
    channels = [preset.config.network.model_channels for preset in PRESETS.values() if preset.family == "small"]
    assert channels == sorted(set(channels))


def test_published_presets_are_those_of_the_paper(make_blocks: Callable[..., Any]) -> None:
    config = resolve("edm2-img64-m", make_blocks(resolution=64, channels=3))
    network = config.network
    assert (network.model_channels, config.learning_rate, network.dropout, config.batch_size) == (256, 0.009, 0.1, 2048)
    assert (config.p_mean, config.p_std, config.ref_batches, config.num_images) == (-0.8, 1.6, 35_000, 2048 * 2**20)
    assert PRESETS["edm2-img512-xxl"].config.num_images == 896 * 2**20
    with pytest.raises(UserError, match="--resolution 64"):
        resolve("edm2-img64-s", make_blocks(resolution=32))


def test_changes_win_over_the_preset_and_overrides_over_changes(make_blocks: Callable[..., Any]) -> None:
    config = resolve("nano", make_blocks(), overrides=["seed=5"], num_images=123, seed=4, batch_size=None)
    assert (config.num_images, config.seed, config.batch_size) == (123, 5, PRESETS["nano"].config.batch_size)
    assert resolve("nano", make_blocks(class_names=())).unconditional
    with pytest.raises(UserError, match="choose one of tiny"):
        resolve("tinny", make_blocks())
    with pytest.raises(UserError, match="no encoder"):
        resolve("nano", make_blocks(), encoder="vae")


@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_encoder_trains_and_its_model_file_decodes(
    make_config: Callable[..., Any], tmp_path: Path, encoder: str
) -> None:
    source = open_data("digits")
    config = resolve("nano", source, encoder=encoder, num_images=32, batch_size=8, seed=3)
    assert config == resolve("nano", source, encoder=encoder, num_images=32, batch_size=8, seed=3)
    assert TrainConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    tiny = replace(make_config().network, channel_mult=config.network.channel_mult)
    config = replace(config, network=tiny, num_snapshots=1)
    result = train(config, source, tmp_path / "run", stop_after_images=16)
    assert not result.finished
    result = train(config, source, tmp_path / "run")  # resumes with the same encoder
    assert (result.finished, result.skipped) == (True, 0)
    path = sorted((tmp_path / "run" / "snapshots").iterdir())[-1]
    encoder_config = read_model_info(path).encoder
    assert encoder_config == config.encoder
    images = source.read(range(50))
    stored = make_encoder(encoder_config)
    assert torch.equal(stored.decode(stored.encode(images)), images)
    drawn = sample(load_model(path), range(3), solver=Heun(num_steps=2))
    assert drawn.dtype == torch.uint8
    assert drawn.shape == (3, 1, 8, 8)
