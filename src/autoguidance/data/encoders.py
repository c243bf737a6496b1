"""Images to the network's input and back.

Images u [N, C, R, R] are uint8; latents z [N, C', R', R'] are float32. `pixels` and `unshuffle` are exact: they first
repeat the edge until the picture has P >= R pixels (a U-Net that halves k times needs a multiple of 2^k), then scale:

    z = u / 127.5 - 1                        u = trunc(clip(127.5 z + 128, 0, 255)),  cropped to R x R again

`pixels` stops there: C' = C, R' = P. `unshuffle` moves every f x f block into channels, C' = C f^2, R' = P / f,
channel c f^2 + f dy + dx holding pixel (dy, dx) of each block of channel c: a small network then sees few positions,
and nothing is lost. `vae` is an autoencoder (vae.py): lossy, and it needs a network of its own.

An encoder is named by a JSON-like configuration, which model files carry: {"name": "pixels", "channels": 1,
"resolution": 28, "padding": 2}. `padding` is in pixels on all four sides, or [before, after] where P - R is odd.

Reference: Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models", arXiv 2312.02696
(the scaling); Shi et al. 2016, arXiv 1609.05158 (pixel shuffle).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from autoguidance.data.source import ImageSource
from autoguidance.data.vae import VaeEncoder, vae_encoder
from autoguidance.errors import UserError


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


def make_encoder(
    config: Mapping[str, Any] | None,
    *,
    img_channels: int | None = None,
    img_resolution: int | None = None,
    device: torch.device | str | None = None,
) -> PixelEncoder | UnshuffleEncoder | VaeEncoder:
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
    settings = dict(config or {"name": "pixels"})
    name = settings.pop("name", None)
    if name not in _KEYS:
        raise UserError(f"encoder {name!r} is not known; known: {', '.join(_KEYS)}")
    if unknown := sorted(map(str, set(settings) - _KEYS[name])):
        known = ", ".join(sorted(_KEYS[name]))
        raise UserError(f"encoder {name!r}: unknown setting {', '.join(unknown)}; known: {known}")
    if name == "vae":
        encoder = vae_encoder(settings, img_resolution=img_resolution, device=device)
    else:
        if name == "pixels":  # published models carry the name alone
            settings.setdefault("channels", img_channels)
            if img_resolution is not None and "resolution" not in settings:
                settings["resolution"] = img_resolution - sum(_padding(settings.get("padding", 0)))
        encoder = _pixels(settings) if name == "pixels" else _unshuffle(settings)
    found = (encoder.img_channels, encoder.img_resolution)
    wanted = (img_channels or found[0], img_resolution or found[1])
    if found != wanted:
        raise UserError(
            f"encoder {name!r} gives {found[0]} channels of {found[1]}x{found[1]}, the network takes {wanted[0]} of "
            f"{wanted[1]}x{wanted[1]}; use the encoder that the network was trained with"
        )
    return encoder


_PIXEL_KEYS = frozenset({"channels", "resolution", "padding"})
_KEYS = {
    "pixels": _PIXEL_KEYS,
    "unshuffle": _PIXEL_KEYS | {"factor"},
    "vae": frozenset({"vae", "raw_mean", "raw_std", "channels", "resolution", "factor"}),
}
EXACT = ("pixels", "unshuffle")


def _pixels(settings: dict[str, Any]) -> PixelEncoder:
    padding = _padding(settings.get("padding", 0))
    return PixelEncoder(
        channels=_integer(settings, "channels"), resolution=_integer(settings, "resolution"), padding=padding
    )


def _unshuffle(settings: dict[str, Any]) -> UnshuffleEncoder:
    return UnshuffleEncoder(pixels=_pixels(settings), factor=_integer(settings, "factor"))


def default_encoder(
    source: ImageSource, kind: str = "pixels", factor: int = 4, multiple_of: int = 8
) -> PixelEncoder | UnshuffleEncoder:
    """The encoder for a set of images, with the least padding that suits a network.

    Args:
        source: gives channels and resolution.
        kind: "pixels" or "unshuffle".
        factor: side of the blocks of "unshuffle"; without effect on "pixels".
        multiple_of: the latents' resolution becomes a multiple of it: 2^k for a network that halves k times.

    Raises:
        UserError: unknown kind, or numbers below 1.
    """
    if kind not in EXACT:
        raise UserError(f"encoder {kind!r} is not known; known: {', '.join(EXACT)}")
    _check_positive("factor", factor)
    _check_positive("multiple_of", multiple_of)
    unit = multiple_of * (factor if kind == "unshuffle" else 1)
    missing = -source.resolution % unit
    padding = (missing // 2, missing - missing // 2)
    pixels = PixelEncoder(channels=source.channels, resolution=source.resolution, padding=padding)
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
    if isinstance(value, bool) or not isinstance(value, int):
        raise UserError(f"encoder: {key} is {value!r}; give a whole number")
    return value


def _padding(value: Any) -> tuple[int, int]:
    both = value if isinstance(value, (list, tuple)) else [value, value]
    if len(both) != 2 or any(isinstance(side, bool) or not isinstance(side, int) for side in both):
        raise UserError(f"encoder: padding is {value!r}; give a whole number of pixels, or [before, after]")
    return both[0], both[1]
