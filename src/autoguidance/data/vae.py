"""Images to the latents of a variational autoencoder and back: what the 512-pixel networks work on.

Images u [N, 3, R, R] are uint8. The VAE, a network of its own, sees u / 255 and gives for every latent value the mean
and standard deviation of a normal distribution, the moments [N, 2 C, R/f, R/f] (C = 4, f = 8 for Stable Diffusion's).
The diffusion network sees

    z = (mean + std * noise - raw_mean) * 0.5 / raw_std        noise ~ N(0, 1), drawn anew at each look
    u = trunc(255 clip(VAE_decode(z * raw_std / 0.5 + raw_mean), 0, 1))

so z has a standard deviation of about sigma_data = 0.5 per channel. Not to be confused with diffusers' own pipelines,
which feed this VAE with [-1, 1] and scale by one factor: raw_mean and raw_std below belong to [0, 1].

This is lossy: decode(encode(u)) is only close to u. Training needs the moments and these constants alone; the VAE is
loaded by `prepare`, or when something has to be encoded or decoded. It is always run on slices of one fixed shape, so
memory is bounded and image k does not depend on its neighbours. Only configuration and safetensors are read, never
pickles. This is the one module that imports diffusers.

Reference: Kingma & Welling 2014, arXiv 1312.6114; Rombach et al. 2022, arXiv 2112.10752; the constants: Karras et al.
2024, arXiv 2312.02696.
"""

import functools
import importlib.util
import math
import os
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from autoguidance.errors import NotFiniteError, UserError
from autoguidance.storage import read_json

PUBLISHED_VAE = "stabilityai/sd-vae-ft-mse"
PUBLISHED_MEAN = (5.81, 3.25, 0.12, -2.15)
PUBLISHED_STD = (4.17, 4.62, 3.71, 3.28)
FOLDER_VARIABLE = "AUTOGUIDANCE_VAE"
_FINAL_STD = 0.5  # sigma_data of the networks
_CONFIG, _WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
# Pixels of one slice: one 512-pixel image on a CPU, which has no use for more, and eight on a GPU, some 8 GB.
_SLICE_PIXELS = {"cpu": 2**18, "other": 2**21}
_MOST_IMAGES = 64


@dataclass(frozen=True, kw_only=True)
class VaeEncoder:
    """Latents of a VAE, scaled for the diffusion network. See `encoders.Encoder`.

    Attributes:
        vae: name on the Hugging Face hub, or a local folder in diffusers' format.
        raw_mean, raw_std: of the VAE's latents, one per latent channel.
        resolution: R of the images, a multiple of factor.
        channels: of the images; the VAEs known take 3.
        factor: f, pixels per latent value on each axis.
        device: where the VAE runs; None is where its input lies.
        slice_images: images per call of the VAE; None suits the device.
    """

    vae: str
    raw_mean: tuple[float, ...]
    raw_std: tuple[float, ...]
    resolution: int
    channels: int = 3
    factor: int = 8
    device: torch.device | str | None = field(default=None, compare=False)
    slice_images: int | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        for key, value in (("resolution", self.resolution), ("channels", self.channels), ("factor", self.factor)):
            if value < 1:
                raise UserError(f"encoder: {key} {value} is not positive; give a whole number >= 1")
        if self.resolution % self.factor:
            raise UserError(
                f"encoder: {self.resolution} pixels are no multiple of the VAE's factor {self.factor}; "
                "convert the images to another resolution"
            )
        if not self.raw_mean or len(self.raw_mean) != len(self.raw_std):
            raise UserError("encoder: raw_mean and raw_std must have one number per latent channel")
        if not all(map(math.isfinite, (*self.raw_mean, *self.raw_std))) or min(self.raw_std) <= 0:
            raise UserError("encoder: raw_mean must be finite and raw_std positive; mend the model's metadata")
        if self.slice_images is not None and self.slice_images < 1:
            raise UserError(f"batch {self.slice_images}: choose at least 1 image per call of the VAE")

    @property
    def config(self) -> dict[str, Any]:
        return {
            "name": "vae",
            "vae": self.vae,
            "raw_mean": list(self.raw_mean),
            "raw_std": list(self.raw_std),
            "channels": self.channels,
            "resolution": self.resolution,
            "factor": self.factor,
        }

    @property
    def img_channels(self) -> int:
        return len(self.raw_mean)

    @property
    def img_resolution(self) -> int:
        return self.resolution // self.factor

    def prepare(self) -> None:
        """Load the VAE and check that it fits. Raises UserError where it, or the extra, is missing."""
        self._model(torch.device(self.device or "cpu"))

    def moments(self, images: UInt8[Tensor, "N 3 R R"]) -> Float[Tensor, "N 2C h h"]:
        """Mean and standard deviation of the latents, unscaled, as latent data sets store them.

        Raises UserError where type or shape of the images do not fit.
        """
        shape = (self.channels, self.resolution, self.resolution)
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1:] != shape:
            raise UserError(
                f"encoder: images are {images.dtype} {list(images.shape)}, "
                f"not uint8 [N, {', '.join(map(str, shape))}]; choose data that fit the model"
            )

        def encode(model: Any, pixels: Tensor) -> Tensor:
            posterior = model.encode(pixels.to(torch.float32) / 255).latent_dist
            return torch.cat([posterior.mean, posterior.std], dim=1)

        return self._in_slices(encode, images)

    def draw(
        self, moments: Float[Tensor, "N 2C h h"], noise: Float[Tensor, "N C h h"] | None
    ) -> Float[Tensor, "N C h h"]:
        """Latents for the diffusion network from moments; noise None gives those of the mean."""
        channels, width = self.img_channels, self.img_resolution
        if moments.ndim != 4 or moments.shape[1:] != (2 * channels, width, width):
            raise UserError(
                f"encoder: moments have shape {list(moments.shape)}, not [N, {2 * channels}, {width}, {width}]; "
                "choose latents that fit the model"
            )
        mean, std = moments.to(torch.float32).split(channels, dim=1)
        raw_mean, raw_std = self._scale(moments.device)
        return ((mean if noise is None else mean + std * noise) - raw_mean) * _FINAL_STD / raw_std

    def encode(self, images: UInt8[Tensor, "N 3 R R"]) -> Float[Tensor, "N C h h"]:
        """Latents of the posterior's mean; training draws instead (`draw`). See `encoders.Encoder`."""
        return self.draw(self.moments(images), None)

    def decode(self, latents: Float[Tensor, "N C h h"]) -> UInt8[Tensor, "N 3 R R"]:
        """Unscale, decode in slices, clip, truncate. See `encoders.Encoder`."""
        channels, width = self.img_channels, self.img_resolution
        if latents.ndim != 4 or latents.shape[1:] != (channels, width, width):
            raise UserError(
                f"encoder: latents have shape {list(latents.shape)}, not [N, {channels}, {width}, {width}]; "
                "use the encoder that the network was trained with"
            )

        def decode(model: Any, scaled: Tensor) -> Tensor:
            raw_mean, raw_std = self._scale(scaled.device)
            pixels = model.decode(scaled.to(torch.float32) * raw_std / _FINAL_STD + raw_mean).sample
            if not bool(torch.isfinite(pixels).all()):
                raise NotFiniteError(
                    f"the VAE {self.vae} gave values that are not finite; check the latents and the VAE"
                )
            return (pixels.clamp(0, 1) * 255).to(torch.uint8)

        return self._in_slices(decode, latents)

    def _scale(self, device: torch.device) -> tuple[Tensor, Tensor]:
        both = torch.tensor([self.raw_mean, self.raw_std], dtype=torch.float32, device=device)
        return both[0].reshape(1, -1, 1, 1), both[1].reshape(1, -1, 1, 1)

    def _model(self, device: torch.device) -> Any:
        model = load_vae(self.vae, str(device))
        found, wanted = vae_shape(model), (self.channels, self.img_channels, self.factor)
        if found != wanted:
            raise UserError(
                f"the VAE {self.vae} has image channels, latent channels and factor {found}, the model needs {wanted}; "
                "give the VAE that its latents were made with"
            )
        return model

    @torch.no_grad()
    def _in_slices(self, function: Any, batch: Tensor) -> Tensor:
        """function(VAE, slice) over slices of one shape; the last is padded with copies, which are cut off again."""
        device = torch.device(self.device or batch.device)
        model = self._model(device)
        size = self.slice_images or slice_images(self.resolution, device)
        results = []
        for start in range(0, len(batch), size):
            part = batch[start : start + size]
            missing = size - len(part)
            padded = torch.cat([part, part[-1:].expand(missing, -1, -1, -1)]) if missing else part
            results.append(function(model, padded.to(device))[: len(part)].to(batch.device))
        return torch.cat(results) if results else function(model, batch.to(device)).to(batch.device)


def slice_images(resolution: int, device: torch.device) -> int:
    """Images per call of the VAE: a power of two that depends on their size and the kind of device only."""
    budget = _SLICE_PIXELS["cpu" if device.type == "cpu" else "other"]
    return min(_MOST_IMAGES, 1 << max(0, (budget // resolution**2).bit_length() - 1))


def vae_encoder(
    settings: Mapping[str, Any],
    *,
    img_resolution: int | None = None,
    device: torch.device | str | None = None,
) -> VaeEncoder:
    """The encoder of a configuration; the published one needs no more than its name.

    Args:
        settings: `VaeEncoder.config` without "name"; the constants of `PUBLISHED_VAE`, three channels and factor 8
            are filled in, and the resolution from img_resolution.
        img_resolution: of the network's latents, where known.
        device: see `VaeEncoder`.

    Raises:
        UserError: a setting is missing or of the wrong type.
    """
    name = settings.get("vae", PUBLISHED_VAE)
    if not isinstance(name, str) or not name:
        raise UserError(f"encoder: vae is {name!r}; give the name of a VAE, such as {PUBLISHED_VAE}")
    is_published = name == PUBLISHED_VAE
    integers: dict[str, int] = {}
    defaults = {"channels": 3, "factor": 8}
    for key in ("channels", "factor", "resolution"):
        value = settings.get(key, defaults.get(key))
        if key == "resolution" and value is None and img_resolution is not None:
            value = img_resolution * integers["factor"]
        if isinstance(value, bool) or not isinstance(value, int):
            raise UserError(f"encoder: {key} is {reprlib.repr(value)}; give a whole number")
        integers[key] = value
    return VaeEncoder(
        vae=name,
        raw_mean=_numbers(settings, "raw_mean", PUBLISHED_MEAN if is_published else None, name),
        raw_std=_numbers(settings, "raw_std", PUBLISHED_STD if is_published else None, name),
        device=device,
        **integers,
    )


def _numbers(settings: Mapping[str, Any], key: str, default: tuple[float, ...] | None, name: str) -> tuple[float, ...]:
    values = settings.get(key, default)
    if values is None:
        raise UserError(f"encoder: {key} of the VAE {name} is missing; it is known for {PUBLISHED_VAE} only")
    if not isinstance(values, list | tuple) or any(
        isinstance(value, bool) or not isinstance(value, int | float) for value in values
    ):
        raise UserError(f"encoder: {key} is {reprlib.repr(values)}; give one number per latent channel")
    return tuple(float(value) for value in values)


def vae_shape(model: Any) -> tuple[int, int, int]:
    """(image channels, latent channels, factor) of a loaded VAE."""
    config = model.config
    return config.in_channels, config.latent_channels, 2 ** (len(config.block_out_channels) - 1)


def vae_folder(name: str) -> Path:
    """Where a VAE's files are: the folder itself, or the one to which they were downloaded from the hub.

    AUTOGUIDANCE_VAE names a folder that stands for any name which is no folder here: for machines without network.

    Raises UserError where there is none, or its weights are a pickle.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir() and (given := os.environ.get(FOLDER_VARIABLE)):
        folder = Path(given).expanduser()
        if not folder.is_dir():
            raise UserError(f"{FOLDER_VARIABLE}={given} is not a folder; name one with {_CONFIG} and {_WEIGHTS}")
    if not folder.is_dir():
        folder = _download(name)
    for file in (_CONFIG, _WEIGHTS):
        if not (folder / file).is_file():
            pickles = sorted(
                path.name for suffix in ("bin", "pt", "pth", "ckpt") for path in folder.glob(f"*.{suffix}")
            )
            also = f" ({pickles[0]} is a pickle, which could run code and is not read)" if pickles else ""
            raise UserError(f"the VAE {folder} has no {file}{also}; save it in diffusers' format with safetensors")
    return folder


def _download(name: str) -> Path:
    where = f"give a folder with its {_CONFIG} and {_WEIGHTS} in {FOLDER_VARIABLE}"
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise UserError(f"the VAE {name} is neither a folder nor a name on the Hugging Face hub; {where}")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise UserError(_missing_extra(name)) from None
    try:
        return Path(snapshot_download(name, allow_patterns=[_CONFIG, _WEIGHTS]))
    except Exception as error:  # the hub's, the HTTP client's and the file system's errors share no class
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise UserError(
            f"cannot download the VAE {name} ({reason[:120].rstrip('.')}); "
            f"download it once where there is a network, or {where}"
        ) from None


def _missing_extra(name: str) -> str:
    return f"the VAE {name} needs the `vae` extra; run: pip install 'autoguidance[vae]'"


@functools.lru_cache(maxsize=1)
def load_vae(name: str, device: str) -> Any:
    """A VAE ready for use: diffusers' AutoencoderKL, float32, evaluation mode, gradients off. The last one is kept.

    Args:
        name: see `vae_folder`.
        device: where to put it.

    Raises:
        UserError: the extra or the files are missing, damaged, or of another kind of network.
    """
    if importlib.util.find_spec("diffusers") is None:
        raise UserError(_missing_extra(name))
    folder = vae_folder(name)  # before the import, which takes five seconds
    config = read_json(folder / _CONFIG)
    kind = config.get("_class_name") if isinstance(config, dict) else None
    if kind != "AutoencoderKL":
        raise UserError(f"{folder} holds {kind or 'no network of diffusers'}, not an AutoencoderKL; name another VAE")
    try:
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

        loaded: Any = AutoencoderKL.from_pretrained(
            str(folder),
            use_safetensors=True,
            local_files_only=True,
            low_cpu_mem_usage=False,  # True needs a further library
            torch_dtype=torch.float32,
            output_loading_info=True,
        )
    except Exception as error:  # diffusers raises errors of many libraries for damaged files
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise UserError(f"cannot load the VAE {folder} ({reason[:160].rstrip('.')}); get its files again") from None
    model, found = loaded
    if found["missing_keys"] or found.get("mismatched_keys"):  # diffusers would leave those at random
        raise UserError(
            f"the VAE {folder} lacks {len(found['missing_keys'])} weights that its {_CONFIG} asks for; get its files again"
        )
    return model.to(device).eval().requires_grad_(False)
