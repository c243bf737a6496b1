"""Images to the network's input and back.

Images u [N, C, R, R] are uint8; latents z [N, C', R', R'] are float32. `pixels` and `unshuffle` are exact: they first
repeat the edge until the picture has P >= R pixels (a U-Net that halves k times needs a multiple of 2^k), then scale:

    z = u / 127.5 - 1                        u = trunc(clip(127.5 z + 128, 0, 255)),  cropped to R x R again

`pixels` stops there: C' = C, R' = P. `unshuffle` moves every f x f block into channels, C' = C f^2, R' = P / f,
channel c f^2 + f dy + dx holding pixel (dy, dx) of each block of channel c: a small network then sees few positions,
and nothing is lost. `vae` is an autoencoder (vae.py): lossy, and it needs a network of its own.

`scaled`, `dct`, `wavelet` and `lapped` are exact too: an orthonormal transform y of every f x f block (blocks.py; none for
`scaled`), and then each channel k is shifted and scaled to the standard deviation that the networks are made for,

    z_k = (y_k - mean_k) * 0.5 / std_k

with the mean and std of y over the training images, at least blocks.STD_FLOOR, in the configuration. Without this, images
have a standard deviation of 0.3 to 0.85, most of it in the low frequencies.

An encoder is named by a JSON-like configuration, which model files carry: {"name": "pixels", "channels": 1,
"resolution": 28, "padding": 2}. `padding` is in pixels on all four sides, or [before, after] where P - R is odd.

Reference: Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models", arXiv 2312.02696
(both scalings; theirs by channel is of the latents of a VAE); Shi et al. 2016, arXiv 1609.05158 (pixel shuffle).
"""

import math
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeGuard, runtime_checkable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from autoguidance.data.blocks import (
    BLOCK_FACTORS,
    STD_FLOOR,
    coefficient_statistics,
    from_coefficients,
    to_coefficients,
)
from autoguidance.data.source import ImageSource
from autoguidance.data.vae import VaeEncoder, vae_encoder
from autoguidance.errors import UserError

_FINAL_STD = 0.5  # sigma_data of the networks


@runtime_checkable
class Encoder(Protocol):
    """Images to latents and back.

    Attributes:
        config: complete JSON-like configuration; `make_encoder(config)` gives an equal encoder.
        channels: C of the images.
        resolution: R of the images.
        img_channels: C' of the latents, what the network is built for.
        img_resolution: R' of the latents.
    """

    @property
    def config(self) -> dict[str, Any]: ...
    @property
    def channels(self) -> int: ...
    @property
    def resolution(self) -> int: ...
    @property
    def img_channels(self) -> int: ...
    @property
    def img_resolution(self) -> int: ...

    def encode(self, images: UInt8[Tensor, "N C R R"]) -> Float[Tensor, "N C2 R2 R2"]:
        """uint8 images to float32 latents on the same device, without chance; an autoencoder gives its mean.

        Raises UserError where type or shape do not fit.
        """
        ...

    def decode(self, latents: Float[Tensor, "N C2 R2 R2"]) -> UInt8[Tensor, "N C R R"]:
        """Latents to uint8 images on the same device. decode(encode(u)) is u, close to u for an autoencoder.

        Raises UserError where the shape does not fit.
        """
        ...

    def prepare(self) -> None:
        """Get ready to decode, so that what is missing shows before hours of sampling and not after them.

        Raises UserError where something is missing.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class PixelEncoder:
    """Pixels scaled to [-1, 1], padded by repeating the edge.

    Attributes:
        channels: C, at least 1.
        resolution: R in pixels.
        padding: pixels (before, after) on both axes, at least 0.
    """

    channels: int
    resolution: int
    padding: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        _check_positive("channels", self.channels)
        _check_positive("resolution", self.resolution)
        if min(self.padding) < 0:
            raise UserError(f"encoder: padding {list(self.padding)} is negative; give pixels >= 0")

    @property
    def config(self) -> dict[str, Any]:
        before, after = self.padding
        return {
            "name": "pixels",
            "channels": self.channels,
            "resolution": self.resolution,
            "padding": before if before == after else [before, after],
        }

    @property
    def img_channels(self) -> int:
        return self.channels

    @property
    def img_resolution(self) -> int:
        return self.resolution + sum(self.padding)

    def encode(self, images: UInt8[Tensor, "N C R R"]) -> Float[Tensor, "N C P P"]:
        """z = u / 127.5 - 1. See `Encoder`."""
        shape = (self.channels, self.resolution, self.resolution)
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1:] != shape:
            raise UserError(
                f"encoder: images are {images.dtype} {list(images.shape)}, "
                f"not uint8 [N, {', '.join(map(str, shape))}]; choose data that fit the model"
            )
        latents = images.to(torch.float32) / 127.5 - 1
        before, after = self.padding
        return functional.pad(latents, (before, after, before, after), mode="replicate") if before or after else latents

    def decode(self, latents: Float[Tensor, "N C P P"]) -> UInt8[Tensor, "N C R R"]:
        """u = trunc(clip(127.5 z + 128, 0, 255)). See `Encoder`."""
        _check_latents(latents, self.img_channels, self.img_resolution)
        crop = slice(self.padding[0], self.padding[0] + self.resolution)
        return (latents[..., crop, crop].to(torch.float32) * 127.5 + 128).clip(0, 255).to(torch.uint8)

    def prepare(self) -> None:
        """Nothing is needed."""


@dataclass(frozen=True, kw_only=True)
class UnshuffleEncoder:
    """Padded pixels with every factor x factor block moved into channels: C' = C * factor^2.

    Attributes:
        pixels: the scaling and padding that come first.
        factor: side of a block in pixels, at least 1; divides the padded resolution.
    """

    pixels: PixelEncoder
    factor: int

    def __post_init__(self) -> None:
        _check_positive("factor", self.factor)
        if self.pixels.img_resolution % self.factor:
            raise UserError(
                f"encoder: {self.pixels.img_resolution} padded pixels are no multiple of factor {self.factor}; "
                "change padding or factor"
            )

    @property
    def config(self) -> dict[str, Any]:
        return {**self.pixels.config, "name": "unshuffle", "factor": self.factor}

    @property
    def channels(self) -> int:
        return self.pixels.channels

    @property
    def resolution(self) -> int:
        return self.pixels.resolution

    @property
    def img_channels(self) -> int:
        return self.channels * self.factor**2

    @property
    def img_resolution(self) -> int:
        return self.pixels.img_resolution // self.factor

    def encode(self, images: UInt8[Tensor, "N C R R"]) -> Float[Tensor, "N C2 R2 R2"]:
        """Scale, pad, unshuffle. See `Encoder`."""
        return functional.pixel_unshuffle(self.pixels.encode(images), self.factor)

    def decode(self, latents: Float[Tensor, "N C2 R2 R2"]) -> UInt8[Tensor, "N C R R"]:
        """Shuffle, crop, scale. See `Encoder`."""
        _check_latents(latents, self.img_channels, self.img_resolution)
        return self.pixels.decode(functional.pixel_shuffle(latents, self.factor))

    def prepare(self) -> None:
        """Nothing is needed."""


@dataclass(frozen=True, kw_only=True)
class BlockEncoder:
    """Padded pixels, blocks transformed, every channel scaled to a standard deviation of 0.5. C' = C * factor^2.

    Attributes:
        pixels: the scaling and padding that come first; 1 or 3 channels.
        transform: "scaled", "dct", "wavelet" or "lapped" (blocks.py).
        factor: side of a block in pixels: 1 (scaled only), 2 or 4; divides the padded resolution.
        mean: of the transformed pixels, one per latent channel.
        std: the same, at least `STD_FLOOR`.
    """

    pixels: PixelEncoder
    transform: str
    factor: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if self.factor not in (factors := BLOCK_FACTORS[self.transform]):
            raise UserError(f"encoder {self.transform!r}: factor is {self.factor}; give one of {list(factors)}")
        if self.channels not in (1, 3):
            raise UserError(f"encoder {self.transform!r}: channels is {self.channels}; give 1 or 3")
        if self.pixels.img_resolution % self.factor:
            raise UserError(
                f"encoder: {self.pixels.img_resolution} padded pixels are no multiple of factor {self.factor}; "
                "change padding or factor"
            )
        # Pixels lie in [-1, 1], so no coefficient is larger, and neither is the mean or the deviation of any. (In one
        # block sqrt(C'); the windows of `lapped` allow 1.29 of it.)
        largest = 1.3 * math.sqrt(self.img_channels)
        for key, values, least in (("mean", self.mean, -largest), ("std", self.std, STD_FLOOR)):
            if len(values) != self.img_channels:
                raise UserError(
                    f"encoder {self.transform!r}: {key} has {len(values)} numbers, not {self.img_channels}, one per "
                    "channel; restore the file that it came from"
                )
            for value in values:
                if not least <= value <= largest:  # neither holds of NaN
                    raise UserError(
                        f"encoder {self.transform!r}: {key} holds {value}, which is not between {least:.4g} and "
                        f"{largest:.4g}; restore the file that it came from"
                    )

    @property
    def config(self) -> dict[str, Any]:
        return {
            **self.pixels.config,
            "name": self.transform,
            "factor": self.factor,
            "mean": list(self.mean),
            "std": list(self.std),
        }

    @property
    def channels(self) -> int:
        return self.pixels.channels

    @property
    def resolution(self) -> int:
        return self.pixels.resolution

    @property
    def img_channels(self) -> int:
        return self.channels * self.factor**2

    @property
    def img_resolution(self) -> int:
        return self.pixels.img_resolution // self.factor

    def encode(self, images: UInt8[Tensor, "N C R R"]) -> Float[Tensor, "N C2 R2 R2"]:
        """Scale, pad, transform, scale by channel. See `Encoder`."""
        coefficients = to_coefficients(self.pixels.encode(images), self.transform, self.factor)
        mean, std = self._scale(images.device)
        return (coefficients - mean) * (_FINAL_STD / std)

    def decode(self, latents: Float[Tensor, "N C2 R2 R2"]) -> UInt8[Tensor, "N C R R"]:
        """Unscale, transform back, crop, scale. See `Encoder`."""
        _check_latents(latents, self.img_channels, self.img_resolution)
        mean, std = self._scale(latents.device)
        coefficients = latents.to(torch.float32) * (std / _FINAL_STD) + mean
        return self.pixels.decode(from_coefficients(coefficients, self.transform, self.factor))

    def prepare(self) -> None:
        """Nothing is needed."""

    def _scale(self, device: torch.device) -> tuple[Tensor, Tensor]:
        both = torch.tensor([self.mean, self.std], dtype=torch.float32, device=device)
        return both[0].reshape(1, -1, 1, 1), both[1].reshape(1, -1, 1, 1)


ExactEncoder = PixelEncoder | UnshuffleEncoder | BlockEncoder


def make_encoder(
    config: Mapping[str, Any] | None,
    *,
    img_channels: int | None = None,
    img_resolution: int | None = None,
    device: torch.device | str | None = None,
) -> ExactEncoder | VaeEncoder:
    """Build the encoder that a configuration names.

    Args:
        config: as `Encoder.config`; None is plain pixels without padding. "pixels" may leave out channels and
            resolution, "vae" whatever `vae.vae_encoder` fills in.
        img_channels: channels of the network's latents: they fill what the configuration leaves out, and must fit
            what it says.
            None: the configuration alone counts.
        img_resolution: the same for the latents' resolution.
        device: where an autoencoder runs; None is where its input lies. Without effect on the others.

    Raises:
        UserError: unknown name or key, missing or wrong value, or latents that do not fit the network.
    """
    if not isinstance(config, Mapping | None):
        raise UserError(f"encoder: the configuration is {_short(config)}; give an object with a name")
    settings = dict(config or {"name": "pixels"})
    name = settings.pop("name", None)
    if not isinstance(name, str) or name not in _KEYS:
        raise UserError(f"encoder {_short(name)} is not known; known: {', '.join(_KEYS)}")
    if unknown := sorted(map(str, set(settings) - _KEYS[name])):
        known = ", ".join(sorted(_KEYS[name]))
        raise UserError(f"encoder {name!r}: unknown setting {_listed(unknown)}; known: {known}")
    if name == "vae":
        encoder = vae_encoder(settings, img_resolution=img_resolution, device=device)
    else:
        if name == "pixels":  # published models carry the name alone
            settings.setdefault("channels", img_channels)
            if img_resolution is not None and "resolution" not in settings:
                settings["resolution"] = img_resolution - sum(_padding(settings.get("padding", 0)))
        encoder = _BUILDERS[name](settings)
    found = (encoder.img_channels, encoder.img_resolution)
    wanted = (img_channels or found[0], img_resolution or found[1])
    if found != wanted:
        raise UserError(
            f"encoder {name!r} gives {found[0]} channels of {found[1]}x{found[1]}, the network takes {wanted[0]} of "
            f"{wanted[1]}x{wanted[1]}; use the encoder that the network was trained with"
        )
    return encoder


EXACT = ("pixels", "unshuffle", *BLOCK_FACTORS)
_PIXEL_KEYS = frozenset({"channels", "resolution", "padding"})
_KEYS = {
    "pixels": _PIXEL_KEYS,
    "unshuffle": _PIXEL_KEYS | {"factor"},
    "vae": frozenset({"vae", "raw_mean", "raw_std", "channels", "resolution", "factor"}),
    **{name: _PIXEL_KEYS | {"factor", "mean", "std"} for name in BLOCK_FACTORS},
}


def _pixels(settings: dict[str, Any]) -> PixelEncoder:
    padding = _padding(settings.get("padding", 0))
    return PixelEncoder(
        channels=_integer(settings, "channels"), resolution=_integer(settings, "resolution"), padding=padding
    )


def _unshuffle(settings: dict[str, Any]) -> UnshuffleEncoder:
    return UnshuffleEncoder(pixels=_pixels(settings), factor=_integer(settings, "factor"))


def _blocks(name: str, settings: dict[str, Any]) -> BlockEncoder:
    return BlockEncoder(
        pixels=_pixels(settings),
        transform=name,
        factor=_integer(settings, "factor"),
        mean=_numbers(settings, "mean"),
        std=_numbers(settings, "std"),
    )


_BUILDERS: dict[str, Callable[[dict[str, Any]], ExactEncoder]] = {
    "pixels": _pixels,
    "unshuffle": _unshuffle,
    **{name: partial(_blocks, name) for name in BLOCK_FACTORS},
}


def default_encoder(source: ImageSource, kind: str = "pixels", factor: int = 4, multiple_of: int = 8) -> ExactEncoder:
    """The encoder for a set of images, with the least padding that suits a network.

    Args:
        source: gives channels and resolution, and the images whose mean and std all but "pixels" and "unshuffle" store.
        kind: one of EXACT.
        factor: side of the blocks; without effect on "pixels".
        multiple_of: the latents' resolution becomes a multiple of it: 2^k for a network that halves k times.

    Raises:
        UserError: unknown kind, a factor that it is not made for, or numbers below 1.
    """
    if kind not in EXACT:
        raise UserError(f"encoder {kind!r} is not known; known: {', '.join(EXACT)}")
    _check_positive("factor", factor)
    _check_positive("multiple_of", multiple_of)
    if factor not in (factors := BLOCK_FACTORS.get(kind, (factor,))):
        raise UserError(f"encoder {kind!r}: factor is {factor}; give one of {list(factors)}")
    unit = multiple_of * (1 if kind == "pixels" else factor)
    missing = -source.resolution % unit
    padding = (missing // 2, missing - missing // 2)
    pixels = PixelEncoder(channels=source.channels, resolution=source.resolution, padding=padding)
    if kind in BLOCK_FACTORS:
        mean, std = coefficient_statistics(source, padding, kind, factor)
        return BlockEncoder(pixels=pixels, transform=kind, factor=factor, mean=mean, std=std)
    return UnshuffleEncoder(pixels=pixels, factor=factor) if kind == "unshuffle" else pixels


def _check_positive(key: str, value: int) -> None:
    if value < 1:
        raise UserError(f"encoder: {key} {value} is not positive; give a whole number >= 1")


def _check_latents(latents: Tensor, channels: int, resolution: int) -> None:
    if latents.ndim != 4 or latents.shape[1:] != (channels, resolution, resolution):
        raise UserError(
            f"encoder: latents have shape {list(latents.shape)}, not [N, {channels}, {resolution}, {resolution}]; "
            "use the encoder that the network was trained with"
        )


def _integer(settings: dict[str, Any], key: str) -> int:
    value = settings.get(key)
    if not _is_whole(value):
        raise UserError(f"encoder: {key} is {_short(value)}; give a whole number")
    return value


def _padding(value: Any) -> tuple[int, int]:
    both = value if isinstance(value, (list, tuple)) else [value, value]
    if len(both) != 2 or not all(map(_is_whole, both)):
        raise UserError(f"encoder: padding is {_short(value)}; give a whole number of pixels, or [before, after]")
    return both[0], both[1]


def _is_whole(value: Any) -> TypeGuard[int]:
    return type(value) is int and abs(value) < 2**31


def _numbers(settings: dict[str, Any], key: str) -> tuple[float, ...]:
    values = settings.get(key)
    try:
        if isinstance(values, (list, tuple)) and all(type(value) in (int, float) for value in values):
            return tuple(float(value) for value in values)
    except OverflowError:  # a whole number of more than 308 digits
        pass
    raise UserError(f"encoder: {key} is {_short(values)}; give one number per channel")


def _short(value: Any) -> str:
    """A value from a file that may be damaged, short and in one line."""
    try:
        return reprlib.repr(value)
    except ValueError:  # Python does not write whole numbers of more than 4,300 digits
        return "a very long number"


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(name if name.isprintable() and len(name) <= 40 else _short(name) for name in names[:5])
    return shown + (f" and {len(names) - 5} more" if len(names) > 5 else "")
