"""Sets of images to sets of VAE latents, once and for all, and back.

A latent diffusion network is shown each image a thousand times; its VAE would take more time than the network itself.
`encode_data` runs the VAE once per image and stores the posterior's moments (latent_files.py), from which training draws.

The scale of a VAE's latents has to be known (vae.py: raw_mean, raw_std). For the published VAE they are the published
constants, so that its networks and ours see the same numbers; for another one they are measured over the set:

    raw_mean = E[mean],    raw_std^2 = E[mean^2 + std^2] - raw_mean^2      per channel, over images and positions

Both directions are made part by part (parts.py), so a killed command goes on, and memory holds one part.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from autoguidance.data.convert import Converted, png_bytes
from autoguidance.data.latent_files import npy_bytes
from autoguidance.data.latents import LatentSource
from autoguidance.data.open import open_data
from autoguidance.data.parts import Parts, check_target, label_document, member_name, open_parts
from autoguidance.data.source import ArraySource, DecodedSource, ProgressCallback
from autoguidance.data.vae import (
    PUBLISHED_MEAN,
    PUBLISHED_STD,
    PUBLISHED_VAE,
    VaeEncoder,
    load_vae,
    vae_encoder,
    vae_folder,
    vae_shape,
)
from autoguidance.errors import UserError
from autoguidance.storage import sha256_file

_STEM = "img-mean-std-"
_IMAGES_PER_READ = 64


def encode_data(
    name: str | Path,
    out: Path | str,
    *,
    vae: str = PUBLISHED_VAE,
    batch: int | None = None,
    device: torch.device | str = "cpu",
    progress: ProgressCallback | None = None,
) -> Converted:
    """Write the VAE latents of a set of images, with their labels; the same call goes on after a kill.

    Args:
        name: any set that `open_data` takes, of one size; grey images are encoded as RGB.
        out: a .zip to make, or a folder (a name without suffix).
        vae: name on the Hugging Face hub, or a local folder in diffusers' format.
        batch: images per call of the VAE; None suits the device. Changes the result by rounding only (1e-6).
        device: where the VAE runs.
        progress: called with (images done, images in total, {}); first while images are checked.

    Returns: what was made.

    Raises:
        DataError: some images cannot be used.
        UserError: the VAE or its extra is missing, the images' size is no multiple of its factor, or `out` is
            something else already or cannot be written.
    """
    source = open_data(name, progress=progress)
    vae = str(Path(vae).expanduser().resolve()) if Path(vae).expanduser().is_dir() else vae
    num_images = source.num_images
    made = {"source": source.name, "num_images": num_images, "source_fingerprint": source.fingerprint, "vae": vae}
    if check_target(out, made):
        return Converted(out=Path(out), num_images=num_images, num_made=0, was_there=True)
    encoder = _unscaled_encoder(vae, source, batch, device)
    weights = {path.name: sha256_file(path) for path in sorted(vae_folder(vae).glob("*.safetensors"))}
    with open_parts(out, {**made, "weights": weights}, num_images) as parts:
        missing = [number for number in range(len(parts)) if parts.record(number) is None]
        done = num_images - sum(len(parts.images(number)) for number in missing)
        for number in missing:
            record: dict[str, Any] = {}
            parts.write(number, _encoded(encoder, source, parts.images(number), record), record)
            done += len(parts.images(number))
            if progress is not None:
                progress(done, num_images, {})
        if vae == PUBLISHED_VAE:
            scaled = replace(encoder, raw_mean=PUBLISHED_MEAN, raw_std=PUBLISHED_STD)
        else:
            scaled = _measured(encoder, parts)
        members = [member_name(index, _STEM, "npy") for index in range(num_images)]
        extra = {**made, "encoder": scaled.config}
        parts.finish(out, label_document(members, source.class_idx, source.class_names, extra))
    return Converted(out=Path(out), num_images=num_images, num_made=sum(len(parts.images(n)) for n in missing))


def _unscaled_encoder(
    vae: str, source: ArraySource | DecodedSource, batch: int | None, device: torch.device | str
) -> VaeEncoder:
    """The VAE with its shape, and constants that leave its latents as they are."""
    channels, latent_channels, factor = vae_shape(load_vae(vae, str(torch.device(device))))
    if channels != 3:
        raise UserError(f"the VAE {vae} takes images of {channels} channels; give one for RGB images")
    return VaeEncoder(
        vae=vae,
        raw_mean=(0.0,) * latent_channels,
        raw_std=(0.5,) * latent_channels,
        resolution=source.resolution,
        factor=factor,
        device=device,
        slice_images=batch,
    )


def _encoded(
    encoder: VaeEncoder, source: ArraySource | DecodedSource, images: range, record: dict[str, Any]
) -> Iterator[tuple[str, bytes]]:
    """Members of a part; afterwards `record` holds sums over it, per channel: of mean, and of mean^2 + std^2."""
    first = torch.zeros(encoder.img_channels, dtype=torch.float64)
    second = torch.zeros_like(first)
    for start in range(images.start, images.stop, _IMAGES_PER_READ):
        chosen = range(start, min(start + _IMAGES_PER_READ, images.stop))
        pixels = source.read(chosen).expand(-1, 3, -1, -1)  # grey as RGB
        moments = encoder.moments(pixels)
        if not bool(torch.isfinite(moments).all()):
            raise UserError(
                f"the VAE {encoder.vae} gave values that are not finite for images {chosen.start} .. {chosen.stop - 1}; "
                "try --device cpu or another VAE"
            )
        mean, std = moments.double().split(encoder.img_channels, dim=1)
        first += mean.sum((0, 2, 3))
        second += (mean.square() + std.square()).sum((0, 2, 3))
        for index, values in zip(chosen, moments.numpy(), strict=True):
            yield member_name(index, _STEM, "npy"), npy_bytes(values)
    record["first"], record["second"] = first.tolist(), second.tolist()


def _measured(encoder: VaeEncoder, parts: Parts) -> VaeEncoder:
    """The encoder with the scale of the latents of all parts."""
    records = [parts.record(number) for number in range(len(parts))]
    assert all(record is not None for record in records)
    count = parts.num_images * encoder.img_resolution**2
    first, second = (
        torch.tensor([record[key] for record in records if record is not None], dtype=torch.float64).sum(0) / count
        for key in ("first", "second")
    )
    std = (second - first.square()).clamp(min=1e-12).sqrt()
    return replace(encoder, raw_mean=tuple(first.tolist()), raw_std=tuple(std.tolist()))


def decode_data(
    name: str | Path,
    out: Path | str,
    *,
    batch: int | None = None,
    device: torch.device | str = "cpu",
    progress: ProgressCallback | None = None,
) -> Converted:
    """Write the images of a set of latents as PNG files, with their labels; the same call goes on after a kill.

    What is decoded is the mean of each latent's distribution.

    Args:
        name: a folder or .zip of latents.
        out: a .zip to make, or a folder (a name without suffix).
        batch, device, progress: see `encode_data`.

    Returns: what was made.

    Raises:
        DataError: some latents cannot be used.
        UserError: the set holds images, the VAE or its extra is missing, or `out` is something else already.
    """
    source = open_data(name, latents=True, progress=progress)
    if not isinstance(source, LatentSource):
        raise UserError(f"{name} holds images already, not latents; there is nothing to decode")
    settings = {key: value for key, value in source.encoder.items() if key != "name"}
    encoder = replace(vae_encoder(settings, device=device), slice_images=batch)
    made = {"source": source.name, "num_images": source.num_images, "source_fingerprint": source.fingerprint}
    if check_target(out, made):
        return Converted(out=Path(out), num_images=source.num_images, num_made=0, was_there=True)
    encoder.prepare()
    with open_parts(out, {**made, "vae": encoder.config}, source.num_images) as parts:
        missing = [number for number in range(len(parts)) if parts.record(number) is None]
        done = source.num_images - sum(len(parts.images(number)) for number in missing)
        for number in missing:
            parts.write(number, _decoded(encoder, source, parts.images(number)), {})
            done += len(parts.images(number))
            if progress is not None:
                progress(done, source.num_images, {})
        members = [member_name(index, "img", "png") for index in range(source.num_images)]
        parts.finish(out, label_document(members, source.class_idx, source.class_names, made))
    return Converted(out=Path(out), num_images=source.num_images, num_made=sum(len(parts.images(n)) for n in missing))


def _decoded(encoder: VaeEncoder, source: LatentSource, images: range) -> Iterator[tuple[str, bytes]]:
    for start in range(images.start, images.stop, _IMAGES_PER_READ):
        chosen = range(start, min(start + _IMAGES_PER_READ, images.stop))
        pixels = encoder.decode(encoder.draw(source.read(chosen), None))
        for index, image in zip(chosen, pixels.permute(0, 2, 3, 1).numpy(), strict=True):
            yield member_name(index, "img", "png"), png_bytes(image)
