"""Block transforms keep the energy and are undone exactly; channels are scaled by figures that configurations carry."""

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.fft import dctn

from autoguidance.data import ArraySource, blocks, default_encoder, make_encoder, open_data
from autoguidance.data.blocks import (
    BLOCK_FACTORS,
    MAX_MEASURED,
    STD_FLOOR,
    coefficient_statistics,
    from_coefficients,
    to_coefficients,
)
from autoguidance.data.encoders import BlockEncoder, Encoder
from autoguidance.data.source import Survey
from autoguidance.errors import UserError

KINDS = [(transform, factor) for transform, factors in BLOCK_FACTORS.items() for factor in factors]
each_kind = pytest.mark.parametrize("transform, factor", KINDS, ids=[f"{name}{factor}" for name, factor in KINDS])


def source_of(images: np.ndarray) -> ArraySource:
    survey = Survey(name="x", kind="array")
    return ArraySource(name="x", images=images, class_idx=None, class_names=(), fingerprint="", survey=survey)


def random_images(num: int, channels: int, resolution: int) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, (num, channels, resolution, resolution), dtype=np.uint8)


def smooth_images(num: int, channels: int, resolution: int) -> np.ndarray:
    """Like photographs: bright and dark areas with a hard edge, colours nearly alike, a little noise."""
    rng = np.random.default_rng(8)
    y, x = np.mgrid[:resolution, :resolution] / resolution
    waves = [np.cos(2 * math.pi * (rng.normal() * x + rng.normal() * y + rng.random())) for _ in range(num)]
    brightness = np.stack(waves)[:, None] * 70 + 128 + np.where(x > rng.random((num, 1, 1, 1)), 60, 0)
    tint = rng.normal(size=(num, channels, 1, 1)) * 12
    return (
        (brightness + tint + 3 * rng.normal(size=(num, channels, resolution, resolution))).clip(0, 255).astype(np.uint8)
    )


def corners(channels: int, resolution: int) -> np.ndarray:
    """Extremes: all black, all white, a chessboard and its negative."""
    board = np.indices((resolution, resolution)).sum(0) % 2 * 255
    flat = np.zeros_like(board)
    return np.stack([np.stack([image] * channels) for image in (flat, flat + 255, board, 255 - board)]).astype(np.uint8)


@each_kind
@pytest.mark.parametrize("channels", [1, 3])
def test_transforms_are_orthonormal(transform: str, factor: int, channels: int) -> None:
    size = channels * factor**2
    every_pixel = torch.eye(size, dtype=torch.float64).reshape(size, channels, factor, factor)
    matrix = to_coefficients(every_pixel, transform, factor).reshape(size, size)
    torch.testing.assert_close(matrix @ matrix.mT, torch.eye(size, dtype=torch.float64), rtol=0, atol=1e-14)
    x = torch.randn(3, channels, 4 * factor, 4 * factor, generator=torch.Generator().manual_seed(0))
    y = to_coefficients(x, transform, factor)
    assert y.shape == (3, size, 4, 4)
    torch.testing.assert_close(y.square().sum(), x.square().sum())
    torch.testing.assert_close(from_coefficients(y, transform, factor), x)


@pytest.mark.parametrize("factor", [2, 4])
def test_dct_is_that_of_scipy_by_block_and_channel(factor: int) -> None:
    x = torch.randn(2, 1, 2 * factor, 3 * factor, dtype=torch.float64)
    y = to_coefficients(x, "dct", factor)
    block = x[1, 0, factor:, factor : 2 * factor].numpy()
    np.testing.assert_allclose(y[1, :, 1, 1].reshape(factor, factor), dctn(block, norm="ortho"), atol=1e-14)
    colours = torch.randn(1, 3, factor, factor, dtype=torch.float64)
    expected = dctn(colours[0].numpy(), norm="ortho")  # over the colours too
    np.testing.assert_allclose(to_coefficients(colours, "dct", factor).reshape(expected.shape), expected, atol=1e-14)


def test_wavelet_is_haars_coarsest_first() -> None:
    x = torch.zeros(1, 1, 4, 4)
    x[..., 2:, 0:2] = 1  # the square below left
    y = to_coefficients(x, "wavelet", 4).flatten()
    # A mean of its 2 x 2 square, 2, is seen by the coarse four with these signs; fine details are nought.
    assert y.tolist() == [1, 1, -1, -1, *[0] * 12]
    x = torch.zeros(1, 1, 4, 4)
    x[..., 0, 3] = 1  # above right in its square, which is above right
    y = to_coefficients(x, "wavelet", 4).flatten()
    assert y[:4].tolist() == [0.25, -0.25, 0.25, -0.25]
    assert y[4:].reshape(3, 4).tolist() == [[0, -0.5, 0, 0], [0, 0.5, 0, 0], [0, -0.5, 0, 0]]
    two = torch.randn(1, 3, 2, 2)
    torch.testing.assert_close(to_coefficients(two, "wavelet", 2), to_coefficients(two, "dct", 2))


def one_axis(size: int = 32) -> torch.Tensor:
    """The lapped transform of `size` pixels as a matrix: of rows that do not vary along the other axis."""
    pixels = torch.eye(size, dtype=torch.float64)[:, None, None, :].expand(-1, -1, size, -1)
    y = to_coefficients(pixels, "lapped", 4)[:, :4, 0, :] / 2  # 2: the mean over four equal pixels
    return y.permute(2, 1, 0).flatten(0, 1)


def coding_gain(matrix: torch.Tensor, correlation: float = 0.95) -> float:
    """Arithmetic over geometric mean of the variances in dB, of a block amid the picture; pixels have variance 1."""
    place = torch.arange(len(matrix))
    covariance = correlation ** (place[:, None] - place).abs().double()
    variances = (matrix @ covariance @ matrix.mT).diagonal()[12:16]
    return 10 * math.log10(1 / variances.log().mean().exp().item())


def test_the_lapped_transform_has_the_highest_coding_gain_of_its_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = one_axis()
    torch.testing.assert_close(matrix @ matrix.mT, torch.eye(32, dtype=torch.float64), rtol=0, atol=1e-14)
    assert coding_gain(matrix) == pytest.approx(7.94, abs=0.005)
    for angle, expected in ((0.0, 7.57), (0.30, 7.93), (0.36, 7.93)):  # without a turn it is the DCT of blocks
        monkeypatch.setattr("autoguidance.data.blocks.ANGLE", angle)
        blocks._turn.cache_clear()
        assert coding_gain(one_axis()) == pytest.approx(expected, abs=0.01)
        assert coding_gain(one_axis()) < coding_gain(matrix)
    blocks._turn.cache_clear()


def test_the_lapped_transform_overlaps_and_fades_out() -> None:
    y = torch.zeros(1, 16, 4, 4, dtype=torch.float64)
    y[0, 0, 1, 1] = 1
    patch = from_coefficients(y, "lapped", 4)[0, 0]
    assert {tuple(index) for index in patch.nonzero().tolist()} == {(i, j) for i in range(2, 10) for j in range(2, 10)}
    row = patch[5, 2:10] / patch[5, 2:10].max()
    torch.testing.assert_close(row, row.flip(0))
    assert row[:2].abs().max() < 0.2  # beyond the block, whose own pixels are 2 to 5
    assert 0.6 < row[2] < 0.8
    flat = to_coefficients(torch.ones(1, 1, 16, 16, dtype=torch.float64), "lapped", 4)
    torch.testing.assert_close(flat[:, 0], torch.full((1, 4, 4), 4.0, dtype=torch.float64))
    assert flat[:, 1:].abs().max() < 1e-14
    alone = torch.randn(1, 3, 4, 4)  # no neighbours
    torch.testing.assert_close(to_coefficients(alone, "lapped", 4), to_coefficients(alone, "dct", 4))


@each_kind
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("resolution", [7, 8, 27, 28, 32, 33])
def test_round_trip_is_exact(transform: str, factor: int, channels: int, resolution: int) -> None:
    several = [make(6, channels, resolution) for make in (random_images, smooth_images)] + [
        corners(channels, resolution)
    ]
    grey = np.repeat(smooth_images(6, 1, resolution), channels, axis=1)
    constant = np.full((3, channels, resolution, resolution), 77, dtype=np.uint8)
    every = torch.from_numpy(np.concatenate([*several, grey, constant]))
    every.view(-1)[:256] = torch.arange(256)
    for measured in (*several, grey, constant):  # also where other images than these were measured
        encoder = default_encoder(source_of(measured), transform, factor, multiple_of=4)
        assert isinstance(encoder, BlockEncoder)
        assert isinstance(encoder, Encoder)
        assert min(encoder.std) >= STD_FLOOR
        latents = encoder.encode(every)
        assert latents.dtype == torch.float32
        assert latents.shape == (len(every), encoder.img_channels, encoder.img_resolution, encoder.img_resolution)
        assert latents.abs().max() < 0.5 * 2 * math.sqrt(encoder.img_channels) / STD_FLOOR
        decoded = encoder.decode(latents)
        assert decoded.dtype == torch.uint8
        assert torch.equal(decoded, every)
        assert torch.equal(encoder.decode(latents.double()), every)


@each_kind
@pytest.mark.parametrize("channels, resolution", [(1, 8), (3, 27)])
def test_channels_have_mean_0_and_deviation_one_half(
    transform: str, factor: int, channels: int, resolution: int
) -> None:
    images = smooth_images(200, channels, resolution)
    encoder = default_encoder(source_of(images), transform, factor, multiple_of=4)
    assert isinstance(encoder, BlockEncoder)
    latents = encoder.encode(torch.from_numpy(images)).double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(latents.mean(1), torch.zeros(len(latents)).double(), rtol=0, atol=1e-5)
    free = torch.tensor(encoder.std) > STD_FLOOR
    assert free.all()  # these images have noise of three grey levels everywhere
    deviation = latents.std(1, correction=0)
    torch.testing.assert_close(deviation, torch.full_like(deviation, 0.5), rtol=0, atol=1e-5)


def test_a_channel_without_content_is_not_enlarged_beyond_the_floor() -> None:
    grey = np.repeat(smooth_images(50, 1, 16), 3, axis=1)
    encoder = default_encoder(source_of(grey), "dct", 4)
    assert isinstance(encoder, BlockEncoder)
    assert encoder.std[16:] == (STD_FLOOR,) * 32  # no colour
    assert encoder.encode(torch.from_numpy(grey))[:, 16:].abs().max() < 1e-4
    one_level = torch.from_numpy(grey).clone()
    one_level[:, 2, 5, 5] ^= 1
    moved = (encoder.encode(one_level) - encoder.encode(torch.from_numpy(grey)))[:, 16:].abs().max()
    assert moved < 0.51  # less than a grey level becomes about one standard deviation


@pytest.mark.parametrize("transform", ["dct", "lapped"])
def test_statistics_are_of_evenly_spaced_images_and_do_not_depend_on_the_chunks(
    monkeypatch: pytest.MonkeyPatch, transform: str
) -> None:
    images = smooth_images(24, 3, 12)
    whole = coefficient_statistics(source_of(images), (2, 2), transform, 4)
    monkeypatch.setattr("autoguidance.data.blocks._CHUNK_VALUES", 5 * 3 * 16**2)
    assert coefficient_statistics(source_of(images), (2, 2), transform, 4) == whole
    assert coefficient_statistics(source_of(images[::-1].copy()), (2, 2), transform, 4) == whole
    monkeypatch.setattr("autoguidance.data.blocks.MAX_MEASURED", 8)
    assert coefficient_statistics(source_of(images), (2, 2), transform, 4) == coefficient_statistics(
        source_of(images[::3].copy()), (2, 2), transform, 4
    )
    assert MAX_MEASURED == 10_000


def test_statistics_are_those_of_float64_coefficients() -> None:
    images = smooth_images(30, 3, 14)
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    for transform, factor in KINDS:
        y = to_coefficients(torch.from_numpy(padded).double() / 127.5 - 1, transform, factor).transpose(0, 1).flatten(1)
        mean, std = coefficient_statistics(source_of(images), (1, 1), transform, factor)
        np.testing.assert_allclose(mean, y.mean(1), atol=1e-8)
        np.testing.assert_allclose(std, y.std(1, correction=0), atol=1e-8)


@each_kind
def test_configurations_are_json_and_complete(transform: str, factor: int) -> None:
    encoder = default_encoder(source_of(smooth_images(5, 3, 30)), transform, factor)
    text = json.dumps(encoder.config, allow_nan=False)
    assert make_encoder(json.loads(text)) == encoder
    assert make_encoder(encoder.config, img_channels=3 * factor**2, img_resolution=encoder.img_resolution) == encoder
    assert len(encoder.config["mean"]) == len(encoder.config["std"]) == 3 * factor**2
    assert len(text) < 2000
    with pytest.raises(UserError, match="use the encoder that the network was trained with"):
        make_encoder(encoder.config, img_channels=3 * factor**2, img_resolution=encoder.img_resolution + 1)


GOOD: dict[str, Any] = {
    "name": "dct", "channels": 1, "resolution": 8, "padding": 0, "factor": 2, "mean": [0.0] * 4, "std": [1.0] * 4,
}  # fmt: skip


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"mean": [0.0] * 3}, "mean has 3 numbers, not 4"),
        ({"std": [1.0] * 5}, "std has 5 numbers, not 4"),
        ({"std": [1.0] * 1_000_000}, "std has 1000000 numbers"),
        ({"mean": [0.0, 0.0, math.nan, 0.0]}, "mean holds nan"),
        ({"std": [1.0, 1.0, math.nan, 1.0]}, "std holds nan"),
        ({"mean": [0.0, 0.0, math.inf, 0.0]}, "mean holds inf"),
        ({"mean": [0.0, -3.0, 0.0, 0.0]}, "mean holds -3.0, which is not between -2.6 and 2.6"),
        ({"std": [1.0, 1.0, 1.0, 0.0]}, "std holds 0.0"),
        ({"std": [1.0, 1.0, 1.0, -1.0]}, "std holds -1.0"),
        ({"std": [1.0, 1.0, 1.0, 1e-30]}, "std holds 1e-30"),
        ({"std": [1.0, 1.0, 1.0, 1e30]}, r"std holds 1e\+30"),
        ({"std": [1.0, 1.0, 1.0, 10**400]}, "std is "),
        ({"std": [1.0, 1.0, 1.0, True]}, "std is "),
        ({"std": ["1.0"] * 100_000}, "std is "),
        ({"std": None}, "std is None; give one number per channel"),
        ({"mean": {"0": 1.0}}, "mean is "),
        ({"mean": "0000"}, "mean is '0000'"),
        ({"factor": 3}, r"factor is 3; give one of \[2, 4\]"),
        ({"factor": 1}, "factor is 1"),
        ({"name": "scaled", "factor": 8}, "factor is 8"),
        ({"name": "wavelet", "factor": 10**6}, "factor is 1000000"),
        ({"factor": 10**30}, "factor is 10"),
        ({"channels": 2}, "channels is 2; give 1 or 3"),
        ({"channels": [1] * 100_000}, "channels is "),
        ({"resolution": 7}, "no multiple of factor 2"),
        ({"padding": ["x\n"] * 100_000}, "padding is "),
        ({"name": ["dct"]}, "is not known"),
        ({"name": "dct\n" * 10_000}, "is not known"),
        ({f"key{i}\n": 0 for i in range(10_000)}, "unknown setting 'key0.n'.* and 9995 more"),
    ],
    ids=range(29),
)
def test_damaged_configurations_are_refused_in_one_line(change: dict[str, Any], reason: str) -> None:
    assert make_encoder(GOOD).config == GOOD
    with pytest.raises(UserError, match=reason) as refusal:
        make_encoder({**GOOD, **change})
    assert len(str(refusal.value)) < 400
    assert "\n" not in str(refusal.value)


def test_a_configuration_that_is_no_object_is_refused() -> None:
    for wrong in (["dct"], "dct", 3):
        with pytest.raises(UserError, match="give an object"):
            make_encoder(wrong)  # pyright: ignore[reportArgumentType]


def test_input_that_does_not_fit() -> None:
    encoder = make_encoder(GOOD)
    with pytest.raises(UserError, match="not uint8"):
        encoder.encode(torch.zeros(1, 1, 8, 8))
    with pytest.raises(UserError, match="latents have shape"):
        encoder.decode(torch.zeros(1, 4, 8, 8))
    with pytest.raises(UserError, match=r"'dct': factor is 3"):
        default_encoder(source_of(random_images(1, 1, 9)), "dct", 3)


def test_autocast_and_reduced_precision_change_nothing() -> None:
    images = torch.from_numpy(random_images(4, 3, 8))
    encoder = default_encoder(source_of(images.numpy()), "dct", 4)
    expected = encoder.encode(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(encoder.encode(images), expected)
        assert torch.equal(encoder.decode(expected), images)
    assert torch.equal(torch.cat([encoder.encode(images[i : i + 1]) for i in range(4)]), expected)


@each_kind
def test_digits_round_trip(transform: str, factor: int) -> None:
    source = open_data("digits")
    encoder = default_encoder(source, transform, factor, multiple_of=2)
    images = source.read(range(source.num_images))
    assert torch.equal(encoder.decode(encoder.encode(images)), images)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@each_kind
def test_the_same_on_a_gpu(transform: str, factor: int) -> None:
    images = torch.from_numpy(np.concatenate([random_images(20, 3, 28), smooth_images(20, 3, 28), corners(3, 28)]))
    encoder = default_encoder(source_of(images.numpy()), transform, factor, multiple_of=4)
    latents = encoder.encode(images.cuda())
    assert latents.is_cuda
    torch.testing.assert_close(latents.cpu(), encoder.encode(images), rtol=1e-5, atol=1e-5)
    with torch.autocast("cuda", dtype=torch.float16):
        decoded = encoder.decode(latents)
    assert decoded.is_cuda
    assert torch.equal(decoded.cpu(), images)
