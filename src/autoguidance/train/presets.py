"""Presets: how large a network, how fast, and through which encoder, for a given set of images.

Two kinds. The small-data family `nano < tiny < small < base < large < huge` works for images of 8 to 64 pixels, the
first four of it on a CPU. It adapts to the resolution: images above 16 pixels go through an exactly invertible
rearrangement of blocks of 2 or 4 pixels, which turns 32 x 32 grey pixels into 4 x 16 x 16 or 16 x 8 x 8; convolutions then
cost a quarter or a sixteenth. From 28 pixels it is a cosine transform of blocks of 2, above 36 a lapped one of blocks of
4, with each coefficient scaled to one spread: samples lie far nearer to the real images than through plain pixels in
blocks (docs/log.md).
Parameters of the six at 8 x 8 with ten classes: 95k, 379k, 0.9M, 1.5M, 2.7M, 6.1M.

The published sizes `edm2-img64-*` and `edm2-img512-*` are those of Karras et al. 2024 (arXiv 2312.02696, Table 6) for
GPUs.

Rates do not depend on how long a run is, so that a run can be made longer and a guide can be trained on a sixteenth
of the images with the same preset: the ramp-up of the small family ends after 2,000 or 5,000 images.
"""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from autoguidance.data.encoders import default_encoder
from autoguidance.data.latents import LatentSource, TrainingSource
from autoguidance.data.source import ImageSource
from autoguidance.errors import UserError
from autoguidance.train.config import NetworkConfig, TrainConfig, apply_overrides

_LATENT_FAMILY = "edm2-img512"
# Name of --encoder: kind and factor for `default_encoder`.
ENCODERS: dict[str, tuple[str, int]] = {
    "pixels": ("pixels", 1),
    "unshuffle2": ("unshuffle", 2),
    "unshuffle4": ("unshuffle", 4),
    "pixels-scaled": ("scaled", 1),
    "unshuffle2-scaled": ("scaled", 2),
    "unshuffle4-scaled": ("scaled", 4),
    "dct2": ("dct", 2),
    "dct4": ("dct", 4),
    "wavelet2": ("wavelet", 2),
    "wavelet4": ("wavelet", 4),
    "lapped4": ("lapped", 4),
}


@dataclass(frozen=True, kw_only=True)
class Preset:
    """One size of a family.

    Attributes:
        name: as given to --preset.
        family: presets of one family are ordered by size; "one size smaller" stays within it.
        config: the defaults; encoder and, for the small family, levels are fitted to the data by `resolve`.
        adapts: whether encoder and levels are fitted to the resolution.
        resolution: what the network needs after encoding; None where it adapts.
    """

    name: str
    family: str
    config: TrainConfig
    adapts: bool = False
    resolution: int | None = None


def _small(
    name: str, channels: int, num_images: int, *, batch_size: int, learning_rate: float, rampup_images: int
) -> Preset:
    network = NetworkConfig(
        model_channels=channels,
        channel_mult=(1, 2),
        num_blocks=1,
        # Attention stays where the architecture has it always, in the first deepest block: more of it costs a small
        # network a third of its speed on a CPU.
        attn_resolutions=(),
        channels_per_head=min(channels, 64),
    )
    config = TrainConfig(
        preset=name,
        network=network,
        num_images=num_images,
        batch_size=batch_size,
        learning_rate=learning_rate,
        ref_batches=400,
        rampup_images=rampup_images,
        log_images=2048,
    )
    return Preset(name=name, family="small", config=config, adapts=True)


def _published(data: str, size: str, channels: int, rate: float, dropout: float, num_mi: int) -> Preset:
    name = f"edm2-{data}-{size}"
    latent = data == "img512"
    config = TrainConfig(
        preset=name,
        network=NetworkConfig(model_channels=channels, dropout=dropout),
        num_images=num_mi * 2**20,
        batch_size=2048,
        learning_rate=rate,
        ref_batches=70_000 if latent else 35_000,
        rampup_images=10_000_000,
        p_mean=-0.4 if latent else -0.8,
        p_std=1.0 if latent else 1.6,
        dtype="float16",
        num_snapshots=64,
        snapshot_dtype="float16",
        log_images=2**17,
        checkpoint_seconds=900.0,
    )
    return Preset(name=name, family=f"edm2-{data}", config=config, resolution=64)


# The fast rate reaches the same loss in half the images. On sets of a thousand or two, which the smallest networks are for, it
# leaves no early snapshots that make good guides, and soon nothing to gain (docs/log.md). Batches of 64 in place of 128 are 17 %
# nearer after equal images, for 14 % more time.
_FAST: dict[str, Any] = {"learning_rate": 0.04, "rampup_images": 2_000, "batch_size": 64}
_SLOW: dict[str, Any] = {"learning_rate": 0.01, "rampup_images": 5_000, "batch_size": 128}

# Smallest first within each family: `smaller` relies on it.
_PRESETS = (
    _small("nano", 12, 150_000, **_SLOW),
    _small("tiny", 24, 150_000, **_SLOW),
    _small("small", 36, 200_000, **_FAST),
    _small("base", 48, 200_000, **_FAST),
    _small("large", 64, 1_000_000, **_FAST),
    _small("huge", 96, 2_000_000, **_FAST),
    _published("img64", "xs", 128, 0.0120, 0.0, 1024),
    _published("img64", "s", 192, 0.0100, 0.0, 1024),
    _published("img64", "m", 256, 0.0090, 0.1, 2048),
    _published("img64", "l", 320, 0.0080, 0.1, 1024),
    _published("img64", "xl", 384, 0.0070, 0.1, 640),
    _published("img512", "xxs", 64, 0.0170, 0.0, 2048),
    _published("img512", "xs", 128, 0.0120, 0.0, 2048),
    _published("img512", "s", 192, 0.0100, 0.0, 2048),
    _published("img512", "m", 256, 0.0090, 0.1, 2048),
    _published("img512", "l", 320, 0.0080, 0.1, 1792),
    _published("img512", "xl", 384, 0.0070, 0.1, 1280),
    _published("img512", "xxl", 448, 0.0065, 0.1, 896),
)
PRESETS = {preset.name: preset for preset in _PRESETS}


def find_preset(name: str) -> Preset:
    """The preset of this name. Raises UserError where there is none, naming the nearest ones."""
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=3) or list(PRESETS)
        raise UserError(f"there is no preset {name!r}; choose one of {', '.join(near)}")
    return PRESETS[name]


def smaller(name: str) -> str:
    """The preset one size smaller in the same family: the rule of thumb for a guide.

    Raises UserError where it is the smallest.
    """
    preset = find_preset(name)
    family = [other.name for other in _PRESETS if other.family == preset.family]
    place = family.index(name)
    if place == 0:
        raise UserError(
            f"preset {name!r} is the smallest of its family; train the main model with {family[1]!r} or larger"
        )
    return family[place - 1]


def auto_preset(resolution: int, channels: int = 3, *, on_gpu: bool = False) -> str:
    """The small-data preset that suits a resolution and the machine.

    Args:
        resolution: of the images, in pixels.
        channels: 1 or 3.
        on_gpu: a GPU trains the next larger network faster than a CPU this one.

    Raises: UserError above 64 pixels, where nobody can choose for the user.
    """
    if resolution > 64:
        raise UserError(
            f"no small-data preset for {resolution} pixels; use --resolution 64, or name a preset with --preset"
        )
    names = [preset.name for preset in _PRESETS if preset.adapts]
    # Values per image after padding; digits have 64, Fashion-MNIST 1,024, a 64-pixel colour image 12,288.
    values = channels * resolution**2
    place = 1 if values <= 512 else 2 if values < 784 else 3
    return names[min(place + on_gpu, len(names) - 1)]


def resolve(
    name: str | None,
    source: TrainingSource,
    *,
    encoder: str = "auto",
    overrides: Iterable[str] = (),
    on_gpu: bool = False,
    **changes: Any,
) -> TrainConfig:
    """The complete configuration for a preset, a data set and the user's changes.

    Args:
        name: of a preset; None or "auto": by resolution.
        source: the images, or latents of images.
        encoder: what the network works on, one of ENCODERS; "auto" takes pixels up to 16, then blocks of 2 (unshuffle2;
            dct2 from 28 to 36 pixels) or, above, of 4 (lapped4). Those that scale measure mean and std on the images.
            A set of latents has its own.
        overrides: `key=value` texts, see `train.config.apply_overrides`; they win over `changes`.
        on_gpu: for the automatic preset.
        changes: fields of TrainConfig by name; None leaves the preset's value.

    Raises: UserError where the images do not fit the preset or a change is not possible.
    """
    if name in (None, "auto"):
        is_latent = isinstance(source, LatentSource)
        size = source.latent_resolution if is_latent else source.resolution
        name = auto_preset(size, source.latent_channels if is_latent else source.channels, on_gpu=on_gpu)
    preset = find_preset(str(name))
    config = fit_to_images(preset, source, encoder)
    if not source.num_classes:
        config = replace(config, unconditional=True)
    config = replace(config, **{key: value for key, value in changes.items() if value is not None})
    return apply_overrides(config, overrides)


def fit_to_images(preset: Preset, source: TrainingSource, encoder: str = "auto") -> TrainConfig:
    """The preset's configuration with encoder and levels for these images or latents."""
    if isinstance(source, LatentSource):
        return _fit_latents(preset, source, encoder)
    if not preset.adapts:
        return _fit_published(preset, source)
    if encoder == "auto":
        encoder = _automatic_encoder(source.resolution)
    if encoder not in ENCODERS:
        raise UserError(f"there is no encoder {encoder!r}; choose auto, {', '.join(ENCODERS)}")
    kind, factor = ENCODERS[encoder]
    levels = _levels(-(-source.resolution // factor))
    chosen = default_encoder(source, kind, factor, multiple_of=2 ** (levels - 1))
    network = replace(preset.config.network, channel_mult=(1, *[2] * (levels - 1)))
    return replace(preset.config, network=network, encoder=chosen.config)


def _automatic_encoder(resolution: int) -> str:
    if resolution <= 16:
        return "pixels"
    if resolution < 28:
        return "unshuffle2"
    return "dct2" if resolution <= 36 else "lapped4"


def _levels(width: int) -> int:
    """As many levels as bring the deepest one, which attends, to a width of 4 to 7; the padding stays small."""
    levels = 2
    while width >> (levels - 1) >= 8:
        levels += 1
    return levels


def _fit_latents(preset: Preset, source: LatentSource, encoder: str) -> TrainConfig:
    if encoder not in ("auto", "vae"):
        raise UserError(f"{source.name} holds latents, which have their own encoder; leave out --encoder {encoder}")
    width = source.latent_resolution
    if not preset.adapts:
        if preset.family != _LATENT_FAMILY:
            raise UserError(
                f"preset {preset.name} works on pixels and {source.name} holds latents; "
                f"use {preset.name.replace('img64', 'img512')}, or give images"
            )
        if width != preset.resolution:
            raise UserError(
                f"preset {preset.name} takes latents of {preset.resolution} x {preset.resolution}, those of "
                f"{source.name} are {width} x {width}; encode images of another size"
            )
        return replace(preset.config, encoder=dict(source.encoder))
    levels = _levels(width)
    while width % 2 ** (levels - 1):  # latents cannot be padded
        levels -= 1
    network = replace(preset.config.network, channel_mult=(1, *[2] * (levels - 1)))
    return replace(preset.config, network=network, encoder=dict(source.encoder))


def _fit_published(preset: Preset, source: ImageSource) -> TrainConfig:
    if preset.family == _LATENT_FAMILY:
        raise UserError(
            f"preset {preset.name} works on the latents of an image autoencoder and {source.name} holds images; "
            f"make latents by `autoguidance data encode`, or use "
            f"{preset.name.replace('img512', 'img64').replace('xxs', 'xs').replace('xxl', 'xl')} on 64-pixel images"
        )
    if source.resolution != preset.resolution:
        raise UserError(
            f"preset {preset.name} takes images of {preset.resolution} pixels, not {source.resolution}; "
            f"give --resolution {preset.resolution}"
        )
    return replace(preset.config, encoder=default_encoder(source).config)
