"""How two models denoise the same noisy real images: what can be known of their errors without the ideal denoiser.

Problem: a guide should make the main model's errors, only stronger, but an error is the distance from the ideal
denoiser D*(x) = E[x0 | x], which nobody has. Real images x0 [N, C, H, W] are there, though, and x0 - D*(x) is
uncorrelated with every function of x = x0 + sigma n. So with the errors e_m = D_main - D* and e_g = D_guide - D*, and
with E the mean over images and noise, at each noise level

    V = E|D_main - D_guide|^2                                                          size of the difference
    X = E|D_guide - x0|^2 - E|D_main - x0|^2 = E|e_g|^2 - E|e_m|^2                     excess error of the guide

are unbiased, and the rest follows from r = X / V, because |e_g|^2 = |e_m - (D_main - D_guide)|^2:

    d/dw E|D_w - x0|^2 at w = 1   =  V - X                 negative: guiding moves towards the data
    argmin_w E|D_w - x0|^2        =  (1 + r) / 2           w*; D_w = D_guide + w (D_main - D_guide)
    cos(e_m, e_g)                >=  sqrt(1 - 1 / r^2)     for r > 1; nothing can be said for r <= 1

The last: with B = E|e_m|^2 unknown, cos = (B + (X - V)/2) / sqrt(B (B + X)), whose least value over all B > 0 lies at
B = X (X - V) / (2 V). Equality of the two errors' directions, e_g = k e_m, gives r = (k + 1) / (k - 1); a guide that is
the main model plus errors of its own gives r = 1; errors that have nothing to do with each other give r < 1.

Not to be confused with the best guidance weight: the least denoising error and the best samples are different aims
(docs/log.md compares them). "Real" is what is given: on the images that the models were trained on, D* is the
denoiser that has memorised them, so that what a model has memorised counts as a merit.

References: Vincent 2011, "A connection between score matching and denoising autoencoders" (the identity); Karras et
al. 2024, arXiv 2406.02507, Section 4 (why errors must agree).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from autoguidance.data.encoders import make_encoder
from autoguidance.data.latents import LatentSource, TrainingSource
from autoguidance.data.vae import VaeEncoder
from autoguidance.diffusion.denoiser import Denoiser, device_of, encoder_of
from autoguidance.errors import UserError
from autoguidance.guidance.guided import require_compatible
from autoguidance.sample import SeededNoise, micro_batch_size

ProgressCallback = Callable[[int, int, dict[str, Any]], None]

_MOST_LEVELS = 200


@dataclass(frozen=True, kw_only=True)
class DenoisingSettings:
    """What is denoised.

    Attributes:
        num_images: images, drawn without replacement; all of a smaller set.
        num_levels: noise levels, evenly spaced in log sigma.
        sigma_min, sigma_max: the lowest and the highest; None: 0.02 and 160 times sigma_data, which is 0.01 and 80 for
            the usual 0.5.
        seed: fixes the choice of images and all noise.
    """

    num_images: int = 512
    num_levels: int = 16
    sigma_min: float | None = None
    sigma_max: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_images < 2:
            raise UserError(f"{self.num_images} images are too few to tell an average from chance; give at least 2")
        if not 1 <= self.num_levels <= _MOST_LEVELS:
            raise UserError(f"{self.num_levels} noise levels: choose 1 to {_MOST_LEVELS} (16 is usual)")
        if self.seed < 0:
            raise UserError(f"seed {self.seed} is negative; give a number from 0 on")
        for name, value in (("sigma_min", self.sigma_min), ("sigma_max", self.sigma_max)):
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"{name} {value} is not a noise level; give a positive number")

    def sigmas(self, sigma_data: float) -> list[float]:
        """The noise levels, rising. Raises UserError where they do not."""
        low = 0.02 * sigma_data if self.sigma_min is None else self.sigma_min
        high = 160 * sigma_data if self.sigma_max is None else self.sigma_max
        if self.num_levels == 1:
            return [math.sqrt(low * high)]
        if not low < high:
            raise UserError(f"noise levels from {low:g} to {high:g}: choose sigma_min < sigma_max")
        return np.geomspace(low, high, self.num_levels).tolist()


@dataclass(frozen=True, kw_only=True)
class Level:
    """Figures at one noise level; squared errors are means per value of x, in its unit. `_se`: standard error over images.

    Attributes:
        sigma: the noise level.
        error_main, error_guide: E|D - x0|^2, in which the part that no denoiser can avoid is included.
        difference: V.
        excess, excess_se: X; negative: the guide denoises better than the main model.
        slope, slope_se: V - X, the derivative of the guided denoising error by w at w = 1.
        best_weight, best_weight_se: (1 + X/V) / 2; None where the models agree exactly.
        agreement: least possible cosine between the two models' errors; None where nothing can be said.
    """

    sigma: float
    error_main: float
    error_guide: float
    difference: float
    excess: float
    excess_se: float
    slope: float
    slope_se: float
    best_weight: float | None
    best_weight_se: float | None
    agreement: float | None


@dataclass(frozen=True, kw_only=True, eq=False)
class DenoisingErrors:
    """Squared errors per image and level, means over the values of x, float64.

    Attributes:
        sigmas: the levels.
        main, guide: |D - x0|^2.
        difference: |D_main - D_guide|^2.
    """

    sigmas: tuple[float, ...]
    main: Float[np.ndarray, "N levels"]
    guide: Float[np.ndarray, "N levels"]
    difference: Float[np.ndarray, "N levels"]

    def level(self, index: int) -> Level:
        """The figures at one noise level."""
        return _level(self.sigmas[index], self.main[:, index], self.guide[:, index], self.difference[:, index])

    def levels(self) -> tuple[Level, ...]:
        """The figures at every noise level, rising."""
        return tuple(self.level(index) for index in range(len(self.sigmas)))


def excess_ratio(
    excess: Float[np.ndarray, "N"], difference: Float[np.ndarray, "N"]
) -> tuple[float, float] | tuple[None, None]:
    """r = X / V and its standard error over images (delta method); None where the models agree exactly."""
    size = float(difference.mean())
    if size <= 0:
        return None, None
    ratio = float(excess.mean()) / size
    return ratio, _standard_error(excess - ratio * difference) / size


def least_agreement(ratio: float) -> float | None:
    """sqrt(1 - 1/r^2), the least cosine between the two models' errors at r = X / V; None for r <= 1."""
    return math.sqrt(1 - ratio**-2) if ratio > 1 else None


def _level(
    sigma: float,
    main: Float[np.ndarray, "N"],
    guide: Float[np.ndarray, "N"],
    difference: Float[np.ndarray, "N"],
) -> Level:
    excess = guide - main
    ratio, ratio_se = excess_ratio(excess, difference)
    return Level(
        sigma=sigma,
        error_main=float(main.mean()),
        error_guide=float(guide.mean()),
        difference=float(difference.mean()),
        excess=float(excess.mean()),
        excess_se=_standard_error(excess),
        slope=float((difference - excess).mean()),
        slope_se=_standard_error(difference - excess),
        best_weight=None if ratio is None else (1 + ratio) / 2,
        best_weight_se=None if ratio_se is None else ratio_se / 2,
        agreement=None if ratio is None else least_agreement(ratio),
    )


def _standard_error(values: Float[np.ndarray, "N"]) -> float:
    return float(values.std(ddof=1)) / math.sqrt(len(values))


@torch.no_grad()
def denoising_errors(
    main: Denoiser,
    guides: Sequence[Denoiser],
    source: TrainingSource,
    settings: DenoisingSettings | None = None,
    progress: ProgressCallback | None = None,
) -> list[DenoisingErrors]:
    """Let a main model and its guides denoise the same images with the same noise.

    Image k draws its noise from a generator of its own, level by level, so that the figures do not depend on the
    batches. Memory: one micro-batch of images and one result per model.

    Args:
        main, guides: on one device; a guide has the main model's classes or none.
        source: real images or latents. A conditional model needs its labels.
        settings: None: the defaults.
        progress: called with (images done, images, {}).

    Returns: one per guide.

    Raises: UserError where models and data do not fit, or a model's result is not finite.
    """
    settings = settings or DenoisingSettings()
    for guide in guides:
        require_compatible(main, guide, same_classes=guide.num_classes != 0)
    batches = _Batches(main, source, settings)
    sigmas = settings.sigmas(main.sigma_data)
    shape = (len(batches.chosen), len(sigmas))
    errors_main = np.empty(shape)
    errors, differences = np.empty((len(guides), *shape)), np.empty((len(guides), *shape))
    done = 0
    for batch in batches:
        rows = slice(done, done + batch.num_images)
        for column, sigma in enumerate(sigmas):
            noisy = batch.clean + sigma * batch.draw_noise()
            level = torch.tensor(sigma, device=noisy.device)
            denoised = main(noisy, level, batch.labels)
            errors_main[rows, column] = batch.squared(denoised - batch.clean)
            for index, guide in enumerate(guides):
                other = guide(noisy, level, batch.labels if guide.num_classes else None)
                errors[index, rows, column] = batch.squared(other - batch.clean)
                differences[index, rows, column] = batch.squared(denoised - other)
        done = rows.stop
        if progress is not None:
            progress(done, shape[0], {})
    for what, values in (("main model", errors_main), ("guide", errors)):
        if not np.isfinite(values).all():
            raise UserError(
                f"the {what} gives values that are not finite; its file is damaged or its training diverged"
            )
    return [
        DenoisingErrors(sigmas=tuple(sigmas), main=errors_main, guide=errors[index], difference=differences[index])
        for index in range(len(guides))
    ]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Batch:
    """Some clean images, padded to the fixed micro-batch (convolutions differ by 1e-6 between batch shapes)."""

    clean: Float[Tensor, "n C H W"]
    labels: Float[Tensor, "n num_classes"] | None
    noise: SeededNoise
    num_images: int

    def draw_noise(self) -> Float[Tensor, "n C H W"]:
        return self.noise.randn(self.clean.shape[1:]).to(self.clean.device)

    def squared(self, values: Float[Tensor, "n C H W"]) -> Float[np.ndarray, "num_images"]:
        """Mean square per image, without the padding."""
        return values.double().square().mean(dim=(1, 2, 3))[: self.num_images].cpu().numpy()


class _Batches:
    """The chosen images as the main model wants them, a micro-batch at a time."""

    def __init__(self, main: Denoiser, source: TrainingSource, settings: DenoisingSettings) -> None:
        self.source = source
        self.device = device_of(main)
        self.size = micro_batch_size(main)
        self.seed = settings.seed
        self.encoder = make_encoder(
            encoder_of(main),
            img_channels=main.img_channels,
            img_resolution=main.img_resolution,
            device=self.device,
        )
        self._check_data()
        self.labels = self._one_hot(main)
        order = torch.randperm(source.num_images, generator=torch.Generator().manual_seed(settings.seed % 2**32))
        self.chosen = order[: settings.num_images].tolist()
        if len(self.chosen) < 2:
            raise UserError(f"{source.name} has {len(self.chosen)} image; at least 2 are needed")

    def _check_data(self) -> None:
        encoder, source = self.encoder, self.source
        if isinstance(source, LatentSource):
            if not isinstance(encoder, VaeEncoder) or encoder.config != dict(source.encoder):
                raise UserError(
                    f"{source.name} holds latents of {source.encoder.get('vae')} for {source.resolution} pixels, which are not what the "
                    f"model was trained on ({encoder.config['name']}); give the images, or latents of the model's encoder"
                )
            return
        if (source.channels, source.resolution) != (encoder.channels, encoder.resolution):
            raise UserError(
                f"{source.name} has images of {source.channels} channels and {source.resolution} pixels, the models take "
                f"{encoder.channels} and {encoder.resolution}; give the data that they were trained on"
            )
        encoder.prepare()

    def _one_hot(self, main: Denoiser) -> Float[Tensor, "num_images num_classes"] | None:
        if main.num_classes == 0:
            return None
        source = self.source
        if source.class_idx is None:
            raise UserError(f"{source.name} has no labels, which the main model needs; give labelled data")
        names = tuple(getattr(main, "class_names", ()))
        if source.num_classes != main.num_classes or (names and names != tuple(source.class_names)):
            raise UserError(
                f"{source.name} has other classes ({source.num_classes}) than the main model ({main.num_classes}); give the data that it "
                "was trained on"
            )
        return torch.eye(main.num_classes)[torch.as_tensor(source.class_idx)]

    def __iter__(self) -> Iterator[_Batch]:
        for start in range(0, len(self.chosen), self.size):
            index = self.chosen[start : start + self.size]
            padded = index + [index[-1]] * (self.size - len(index))
            noise = SeededNoise([_image_seed(self.seed, k) for k in padded])
            labels = None if self.labels is None else self.labels[padded].to(self.device)
            yield _Batch(clean=self._clean(padded, noise), labels=labels, noise=noise, num_images=len(index))

    def _clean(self, index: Sequence[int], noise: SeededNoise) -> Float[Tensor, "n C H W"]:
        stored, encoder = self.source.read(index), self.encoder
        if isinstance(encoder, VaeEncoder):  # training saw draws from the posterior, not its mean
            moments = stored if isinstance(self.source, LatentSource) else encoder.moments(stored.to(self.device))
            shape = (encoder.img_channels, encoder.img_resolution, encoder.img_resolution)
            return encoder.draw(moments.to(self.device), noise.randn(shape).to(self.device))
        return encoder.encode(stored).to(self.device)


def _image_seed(seed: int, index: int) -> int:
    """Another generator per image and seed; a fixed mixture, so that neighbouring seeds do not share images' noise."""
    return int(np.random.SeedSequence((seed, index)).generate_state(1)[0])
