"""From seeds to images: draws the noise, runs the solver over fixed-shape batches, decodes.

Convolution kernels differ with the batch shape by up to 1e-6, so a network is always run at ONE micro-batch shape,
the last one padded: image k is then bitwise the same for any order of seeds, any batch size and any number of
processes (on one kind of machine at a fixed thread count). The micro-batch depends only on the model and the device.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from autoguidance.data.encoders import Encoder, make_encoder
from autoguidance.diffusion.denoiser import Denoiser, device_of, encoder_of
from autoguidance.errors import NotFiniteError, UserError
from autoguidance.sample.heun import Heun
from autoguidance.sample.seeds import ClassSelection, SeededNoise
from autoguidance.sample.solver import Solver

Progress = Callable[[int, int, dict[str, object]], None]

# Values of x [N, C, H, W] per micro-batch, and the most images in one. On a CPU 64 small images reach 85 % of the best rate and a
# handful of images does not cost much more than it must; a GPU wants to be filled. Images of few values go through small
# networks: there 64 at a time are 6 % (float32) to 16 % (bfloat16) faster than 16 (12 x 16 x 16, docs/log.md).
_CPU_BUDGET = (64 * 64 * 16, 64)
_GPU_BUDGET = (64 * 64 * 4 * 64, 256)
_FEW_VALUES = 64 * 64


@dataclass(frozen=True)
class SampleBatch:
    """Some finished samples.

    Attributes:
        seeds: one per image.
        class_idx: class per image, -1 for a model without classes.
        latents: the sampler's raw result.
    """

    seeds: list[int]
    class_idx: Int[Tensor, "N"]
    latents: Float[Tensor, "N C H W"]


def micro_batch_size(denoiser: Denoiser) -> int:
    """The one batch size at which a denoiser is run: a power of two that depends on its image size and device only."""
    values = denoiser.img_channels * denoiser.img_resolution**2
    budget, most = _CPU_BUDGET if device_of(denoiser).type == "cpu" else _GPU_BUDGET
    if values <= _FEW_VALUES:
        return most
    return min(most, 1 << max(0, (budget // values).bit_length() - 1))


def image_encoder(denoiser: Denoiser) -> Encoder:
    """The encoder that turns the denoiser's latents into uint8 images, ready; plain pixels where it names none.

    An autoencoder runs where the denoiser does. Raises UserError where what it needs is missing.
    """
    encoder = make_encoder(
        encoder_of(denoiser),
        img_channels=denoiser.img_channels,
        img_resolution=denoiser.img_resolution,
        device=device_of(denoiser),
    )
    encoder.prepare()
    return encoder


@torch.no_grad()
def sample_batches(
    denoiser: Denoiser,
    seeds: Sequence[int],
    *,
    classes: ClassSelection | str | int | Sequence[int] | None = None,
    class_idx: Sequence[int] | None = None,
    solver: Solver | None = None,
    batch_size: int = 32,
    noise_device: torch.device | str = "cpu",
) -> Iterator[SampleBatch]:
    """Yield samples in the order of seeds, batch_size at a time; see `sample` for the arguments.

    batch_size is rounded up to whole micro-batches: a smaller one would compute the padding and throw it away.

    Raises: UserError where a sample is not finite (the models diverged, or the guidance weight is far too high).
    """
    solver = solver or Heun()
    device = device_of(denoiser)
    if batch_size < 1:
        raise UserError(f"batch size {batch_size}: choose at least 1")
    if any(seed < 0 for seed in seeds):
        raise UserError("seeds must be 0 or larger")
    if class_idx is not None and len(class_idx) != len(seeds):
        raise UserError(f"{len(class_idx)} classes for {len(seeds)} seeds; give one class, or one per seed")
    if not isinstance(classes, ClassSelection):
        classes = ClassSelection(classes, denoiser.num_classes)
    shape = (denoiser.img_channels, denoiser.img_resolution, denoiser.img_resolution)
    size = micro_batch_size(denoiser)
    batch_size = -(-batch_size // size) * size

    for start in range(0, len(seeds), batch_size):
        chosen = [int(seed) for seed in seeds[start : start + batch_size]]
        given = None if class_idx is None else list(class_idx[start : start + batch_size])
        latents, labels = [], []
        for offset in range(0, len(chosen), size):
            part = chosen[offset : offset + size]
            padded = part + [part[-1]] * (size - len(part))  # copies: a padding row must not be able to make NaN
            noise_source = SeededNoise(padded, noise_device)
            noise = noise_source.randn(shape)
            if given is None:
                index = classes.draw(padded, noise_source)
            else:
                wanted = given[offset : offset + size]
                index = torch.tensor(wanted + [wanted[-1]] * (size - len(wanted)))
            one_hot = None
            if index is not None and denoiser.num_classes:
                one_hot = torch.nn.functional.one_hot(index, denoiser.num_classes).float().to(device)
            x = solver.integrate(
                denoiser, noise.to(device), one_hot, randn=lambda source=noise_source: source.randn(shape).to(device)
            )
            latents.append(x[: len(part)].float().cpu())
            labels.append(torch.full((len(part),), -1) if index is None else index[: len(part)])
        batch = SampleBatch(chosen, torch.cat(labels), torch.cat(latents))
        if not bool(torch.isfinite(batch.latents).all()):
            raise NotFiniteError("the samples are not finite; lower the guidance weight or check the models")
        yield batch


def sample(
    denoiser: Denoiser,
    seeds: Sequence[int],
    class_idx: int | Sequence[int] | None = None,
    solver: Solver | None = None,
    batch_size: int = 32,
    *,
    classes: str = "random",
    decode: bool = True,
    noise_device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> UInt8[Tensor, "N C H W"] | Float[Tensor, "N C H W"]:
    """Draw one image per seed.

    Args:
        denoiser: a model or a guided pair.
        seeds: integers >= 0; image k depends on seeds[k] alone.
        class_idx: one class for all, one per seed, or None: chosen by `classes`.
        solver: None is Heun with 32 steps.
        batch_size: least number of images finished at a time (memory and progress; it does not change a bit of the result).
        classes: "random" (drawn by each image's generator) or "balanced" (seed mod num_classes).
        decode: True gives uint8 images, False the float32 latents.
        noise_device: where the noise is drawn; "cpu" makes it independent of the denoiser's device.
        progress: called with (images done, images wanted, {}).

    Returns: uint8 [N, C, H, W] images, or float32 latents, on the CPU.
    Raises: UserError for a class out of range, negative seeds, or samples that are not finite.
    """
    seeds = list(seeds)
    selection: ClassSelection | None = None
    per_seed: list[int] | None = None
    if isinstance(class_idx, int | np.integer):
        selection = ClassSelection(int(class_idx), denoiser.num_classes)
    elif class_idx is not None:
        if denoiser.num_classes == 0:
            raise UserError("the model has no classes; leave out class_idx")
        per_seed = [int(c) for c in class_idx]
        if not all(0 <= c < denoiser.num_classes for c in per_seed):
            raise UserError(f"a class index is out of range; choose numbers from 0 to {denoiser.num_classes - 1}")
    encoder = image_encoder(denoiser) if decode else None
    results = []
    done = 0
    for batch in sample_batches(
        denoiser,
        seeds,
        classes=selection or classes,
        class_idx=per_seed,
        solver=solver,
        batch_size=batch_size,
        noise_device=noise_device,
    ):
        results.append(encoder.decode(batch.latents) if encoder is not None else batch.latents)
        done += len(batch.seeds)
        if progress is not None:
            progress(done, len(seeds), {})
    if not results:
        raise UserError("no seeds were given; give at least one")
    return torch.cat(results)
