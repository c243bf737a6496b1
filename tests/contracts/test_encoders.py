"""One suite for every exact encoder: decode(encode(u)) is u, and a configuration tells all. The VAE, which is not exact and needs
files, has its own in tests/integration/test_latents.py."""

import json
from typing import Any

import numpy as np
import pytest
import torch

from autoguidance.data import ArraySource, Encoder, default_encoder, make_encoder
from autoguidance.data.encoders import PixelEncoder, UnshuffleEncoder
from autoguidance.data.source import Survey
from autoguidance.errors import UserError

CONFIGS: list[dict[str, Any]] = [
    {"name": "pixels", "channels": 3, "resolution": 16},
    {"name": "pixels", "channels": 1, "resolution": 28, "padding": 2},
    {"name": "pixels", "channels": 1, "resolution": 27, "padding": [2, 3]},
    {"name": "unshuffle", "channels": 1, "resolution": 28, "padding": 2, "factor": 4},
    {"name": "unshuffle", "channels": 3, "resolution": 16, "factor": 2},
    {"name": "unshuffle", "channels": 3, "resolution": 7, "padding": [0, 1], "factor": 1},
]


@pytest.fixture(params=CONFIGS, ids=json.dumps)
def encoder(request: pytest.FixtureRequest) -> PixelEncoder | UnshuffleEncoder:
    return make_encoder(request.param)


def images_for(encoder: Encoder, num: int = 5) -> torch.Tensor:
    shape = (num, encoder.channels, encoder.resolution, encoder.resolution)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_round_trip_is_exact(encoder: Encoder) -> None:
    images = images_for(encoder)
    images.view(-1)[:256] = torch.arange(256)  # every value at least once
    latents = encoder.encode(images)
    assert latents.dtype == torch.float32
    assert latents.shape == (5, encoder.img_channels, encoder.img_resolution, encoder.img_resolution)
    assert latents.min() >= -1
    assert latents.max() <= 1
    decoded = encoder.decode(latents)
    assert decoded.dtype == torch.uint8
    assert torch.equal(decoded, images)


def test_small_errors_do_not_change_the_image(encoder: Encoder) -> None:
    images = images_for(encoder)
    latents = encoder.encode(images)
    for error in (-0.49, 0.49):  # of a grey level
        assert torch.equal(encoder.decode(latents + error / 127.5), images)
    assert (encoder.decode(latents + 3) == 255).all()
    assert (encoder.decode(latents - 3) == 0).all()


def test_config_is_json_and_complete(encoder: PixelEncoder | UnshuffleEncoder) -> None:
    assert isinstance(encoder, Encoder)
    assert make_encoder(json.loads(json.dumps(encoder.config))) == encoder


def test_input_that_does_not_fit(encoder: Encoder) -> None:
    images = images_for(encoder)
    for wrong in (images.float(), images[0], images[:, :, 1:], images.repeat(1, 2, 1, 1)):
        with pytest.raises(UserError, match="not uint8"):
            encoder.encode(wrong)
    latents = encoder.encode(images)
    for wrong in (latents[0], latents[:, :, 1:], latents.repeat(1, 2, 1, 1)):
        with pytest.raises(UserError, match="latents have shape"):
            encoder.decode(wrong)


def test_pixels_follow_the_equation_and_repeat_the_edge() -> None:
    encoder = make_encoder({"name": "pixels", "channels": 1, "resolution": 2, "padding": 1})
    images = torch.tensor([[[[0, 51], [204, 255]]]], dtype=torch.uint8)
    rows = [[-1, -1, -0.6, -0.6], [-1, -1, -0.6, -0.6], [0.6, 0.6, 1, 1], [0.6, 0.6, 1, 1]]
    torch.testing.assert_close(encoder.encode(images)[0, 0], torch.tensor(rows))


def test_decoding_truncates() -> None:
    encoder = make_encoder({"name": "pixels", "channels": 1, "resolution": 1})
    values = torch.tensor([-1.5, -1.0, 0.0, 0.5, 0.999, 1.0]).reshape(-1, 1, 1, 1)
    assert encoder.decode(values).flatten().tolist() == [0, 0, 128, int(0.5 * 127.5 + 128), 255, 255]


def test_unshuffle_puts_blocks_into_channels() -> None:
    encoder = make_encoder({"name": "unshuffle", "channels": 2, "resolution": 6, "factor": 3})
    images = images_for(encoder, 1)
    latents = encoder.encode(images)
    for channel, dy, dx, row, column in ((0, 0, 0, 0, 0), (1, 2, 1, 1, 0), (0, 1, 2, 1, 1)):
        pixel = images[0, channel, row * 3 + dy, column * 3 + dx]
        assert latents[0, channel * 9 + dy * 3 + dx, row, column].item() == pytest.approx(
            pixel.item() / 127.5 - 1, abs=1e-6
        )


@pytest.mark.parametrize(
    "config, reason",
    [
        ({"name": "jpeg"}, "encoder 'jpeg' is not known; known: pixels, unshuffle, vae"),
        ({}, "channels is None"),
        ({"channels": 1}, "encoder None is not known"),
        ({"name": "pixels", "channels": 1, "resolution": 8, "pad": 2}, "unknown setting pad"),
        ({"name": "pixels", "channels": 1, "resolution": 8, "factor": 2}, "unknown setting factor"),
        ({"name": "pixels", "channels": 1, "resolution": 8.0}, "resolution is 8.0; give a whole number"),
        ({"name": "pixels", "channels": True, "resolution": 8}, "channels is True"),
        ({"name": "pixels", "channels": 0, "resolution": 8}, "channels 0 is not positive"),
        ({"name": "pixels", "channels": 1, "resolution": 8, "padding": -1}, "is negative"),
        ({"name": "pixels", "channels": 1, "resolution": 8, "padding": [1, 2, 3]}, "padding is"),
        ({"name": "pixels", "channels": 1, "resolution": 8, "padding": "2"}, "padding is '2'"),
        ({"name": "unshuffle", "channels": 1, "resolution": 8}, "factor is None"),
        (
            {"name": "unshuffle", "channels": 1, "resolution": 7, "factor": 2},
            "7 padded pixels are no multiple of factor 2",
        ),
    ],
)
def test_wrong_configurations(config: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        make_encoder(config)


def test_no_configuration_is_plain_pixels_of_the_network() -> None:
    plain = make_encoder(None, img_channels=3, img_resolution=64)
    assert plain.config == {"name": "pixels", "channels": 3, "resolution": 64, "padding": 0}
    assert make_encoder({"name": "pixels"}, img_channels=3, img_resolution=64) == plain
    assert make_encoder({"name": "pixels", "padding": 2}, img_channels=1, img_resolution=32).resolution == 28


def test_a_network_of_another_size_is_refused(encoder: PixelEncoder | UnshuffleEncoder) -> None:
    fitting = {"img_channels": encoder.img_channels, "img_resolution": encoder.img_resolution}
    assert make_encoder(encoder.config, **fitting) == encoder
    for key in fitting:
        with pytest.raises(UserError, match="use the encoder that the network was trained with"):
            make_encoder(encoder.config, **{**fitting, key: fitting[key] + 1})


@pytest.mark.parametrize("resolution, kind, multiple_of, latents", [
    (8, "pixels", 8, 8), (28, "pixels", 8, 32), (27, "pixels", 8, 32), (32, "pixels", 1, 32),
    (28, "unshuffle", 8, 8), (64, "unshuffle", 8, 16), (33, "unshuffle", 2, 10), (30, "unshuffle", 1, 8),
])  # fmt: skip
def test_default_encoder_pads_as_little_as_fits(resolution: int, kind: str, multiple_of: int, latents: int) -> None:
    images = np.zeros((1, 1, resolution, resolution), dtype=np.uint8)
    survey = Survey(name="x", kind="array")
    source = ArraySource(name="x", images=images, class_idx=None, class_names=(), fingerprint="", survey=survey)
    encoder = default_encoder(source, kind, multiple_of=multiple_of)
    assert encoder.img_resolution == latents
    assert encoder.img_resolution % multiple_of == 0
    assert torch.equal(encoder.decode(encoder.encode(images_for(encoder))), images_for(encoder))
    with pytest.raises(UserError, match="'vae' is not known"):
        default_encoder(source, "vae")
    with pytest.raises(UserError, match="multiple_of 0 is not positive"):
        default_encoder(source, multiple_of=0)
