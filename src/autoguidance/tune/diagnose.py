"""Can this guide help this main model? A verdict with its figures, from seconds of denoising instead of hours of search.

The figures of denoising.py are summed over the noise levels at which images take shape (`CORE`), each weighted by
lambda(sigma) = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2, so that every level counts as much as in training. With
V = E|D_main - D_guide|^2, X the guide's excess error and E_m = E|D_main - x0|^2, two numbers decide:

    size         =  sqrt(V / E_m)                        how far apart the models are, against the main model's error
    correlation  =  (X - V) / (2 sqrt(V E_m))            of D_main - D_guide with what the main model misses, x0 - D_main

The correlation is a lower bound of the cosine between D_main - D_guide and the direction from D_main to the ideal
denoiser, because E_m also holds what no denoiser can avoid. Its square is the share of E_m that guiding could remove.
A guide with other errors than the main model's, or with far more of its own, has a small one; an unconditional guide
has a negative one, because its difference is about the condition and not about errors.

The thresholds are measured, not derived (docs/log.md: 55 guides of six main models on digits, five of one on
Fashion-MNIST). The best guide of every main model has a correlation of 0.038 or more, on 512 images, and a size of 0.8
to 1.4; below 0.037 lie networks that had hardly begun to learn, that learned other images, or that were damaged later;
below a size of 0.4 only weights above 2 show, and helped less. The correlation orders the guides of one main model better
than those of several. What the figures do not tell: a guide trained on other or less data can look compatible
(pair_check.py warns about those), and the best guidance weight is not the w* of least denoising error but lies near
1 + 0.4 / size. "Too far" does not mean that nothing is gained, but that another guide will gain more.

Reference: Karras et al. 2024, arXiv 2406.02507, Sections 4 and 5.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from autoguidance.data.latents import TrainingSource
from autoguidance.diffusion.denoiser import Denoiser
from autoguidance.errors import UserError
from autoguidance.guidance.guided import require_compatible
from autoguidance.tune.denoising import (
    DenoisingErrors,
    DenoisingSettings,
    Level,
    ProgressCallback,
    denoising_errors,
    excess_ratio,
    least_agreement,
)
from autoguidance.tune.pair_check import ModelFacts, compare_facts, read_facts
from autoguidance.zoo import load

Model = str | Path | Denoiser
Verdict = Literal["too similar", "compatible", "too far"]

CORE = (0.16, 1.4)
"""Noise levels that decide, in units of sigma_data: from two deviations below the usual training's median noise to that median."""
LEAST_SIZE = 0.4
LEAST_CORRELATION = 0.037
BEST_SIZE = 1.0
"""Around it lay the best guides; the ranking is by the distance from it."""
GUIDANCE_STRENGTH = 0.4
"""(w - 1) size at the best w of each guide: 0.26 to 0.56 on digits, 0.6 to 0.7 on Fashion-MNIST."""
_MOST_START_WEIGHT = 10.0


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What is known of a main model and one guide.

    Attributes:
        main, guide: names; of a Denoiser without a name its class.
        verdict: "too similar" | "compatible" | "too far".
        reason: one sentence with the figures that decided.
        warnings: from the metadata, and where the guide is the better model.
        size, correlation, correlation_se: see the module's text; over the levels in `core`. correlation is None where the
            models agree exactly.
        best_weight, best_weight_se: w at which the guided denoising error is least, over the levels in `core`.
        agreement: least possible cosine between the two models' errors there; None where nothing can be said.
        start_weight: guidance weight to begin a search with, 1 + 0.4 / size, at most 10.
        core: lowest and highest noise level that counted.
        levels: figures at every noise level.
        protocol: data, its fingerprint, whether the main model was trained on it (None: unknown), number of images, seed,
            sigma_data.
    """

    main: str
    guide: str
    verdict: Verdict
    reason: str
    warnings: tuple[str, ...]
    size: float
    correlation: float | None
    correlation_se: float | None
    best_weight: float | None
    best_weight_se: float | None
    agreement: float | None
    start_weight: float
    core: tuple[float, float]
    levels: tuple[Level, ...]
    protocol: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """All figures as JSON-like values."""
        content = asdict(self)
        return {
            **content,
            "warnings": list(self.warnings),
            "core": list(self.core),
            "levels": [asdict(level) for level in self.levels],
        }


def diagnose(main: Model, guide: Model, source: TrainingSource, **options: Any) -> Diagnosis:
    """Judge one guide; see `diagnose_guides` for the options."""
    return diagnose_guides(main, [guide], source, **options)[0]


def diagnose_guides(
    main: Model,
    guides: Sequence[Model],
    source: TrainingSource,
    *,
    settings: DenoisingSettings | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    loader: Callable[[str], Denoiser] | None = None,
    progress: ProgressCallback | None = None,
) -> list[Diagnosis]:
    """Judge several guides of one main model on the same images and noise.

    Args:
        main, guides: names as for `load`, or Denoisers (of which no metadata are known).
        source: real images or latents, from `open_data`; labelled where the main model has classes. Best are images that
            the models were not trained on.
        settings: None: the defaults.
        device, dtype: as for `load`; without effect on Denoisers.
        loader: loads a model by name; None is `load`. A search passes one that caches.
        progress: called with (images done, images, {}).

    Returns: one per guide, in their order; `rank` sorts them.

    Raises: UserError where a model cannot be had, two models cannot form a pair, or the data does not fit them.
    """
    if not guides:
        raise UserError("there is no guide to judge; name at least one")
    settings = settings or DenoisingSettings()
    facts_main = _facts(main)
    facts = [_facts(guide) for guide in guides]
    warnings: list[list[str]] = []
    for guide, known in zip(guides, facts, strict=True):
        if facts_main is None or known is None:
            warnings.append([])
            continue
        try:  # before minutes of loading
            require_compatible(facts_main.outline, known.outline, same_classes=known.outline.num_classes != 0)
        except UserError as error:
            raise UserError(f"{guide}: {error}") from None
        warnings.append(compare_facts(facts_main, known))

    def get(model: Model) -> Denoiser:
        if not isinstance(model, str | Path):
            return model
        return loader(str(model)) if loader is not None else load(model, device=device, dtype=dtype)

    first = get(main)
    measured = denoising_errors(first, [get(guide) for guide in guides], source, settings, progress)
    protocol = {
        "data": source.name,
        "data_fingerprint": source.fingerprint,
        "trained_on_data": _trained_on(facts_main, source),
        "num_images": len(measured[0].main),
        "seed": settings.seed,
        "sigma_data": first.sigma_data,
    }
    return [
        judge(
            errors,
            sigma_data=first.sigma_data,
            main=_name(main),
            guide=_name(guide),
            warnings=found,
            protocol=protocol,
        )
        for guide, errors, found in zip(guides, measured, warnings, strict=True)
    ]


def _facts(model: Model) -> ModelFacts | None:
    return read_facts(model) if isinstance(model, str | Path) else None


def _name(model: Model) -> str:
    return str(model) if isinstance(model, str | Path) else type(model).__name__


def _trained_on(facts: ModelFacts | None, source: TrainingSource) -> bool | None:
    if facts is None or facts.fingerprint is None:
        return None
    return facts.fingerprint == source.fingerprint


def judge(
    errors: DenoisingErrors,
    *,
    sigma_data: float,
    main: str = "main",
    guide: str = "guide",
    warnings: Sequence[str] = (),
    protocol: dict[str, Any] | None = None,
) -> Diagnosis:
    """The verdict on measured errors.

    Raises: UserError where no noise level lies within `CORE`.
    """
    sigmas = np.array(errors.sigmas)
    core = (sigmas >= CORE[0] * sigma_data) & (sigmas <= CORE[1] * sigma_data)
    if not core.any():
        raise UserError(
            f"no noise level lies between {CORE[0] * sigma_data:g} and {CORE[1] * sigma_data:g}, where a guide is judged; choose more "
            "levels or another range"
        )
    weights = (sigmas**2 + sigma_data**2) / (sigmas * sigma_data) ** 2
    own, other, difference = (
        (values * weights)[:, core].mean(axis=1) for values in (errors.main, errors.guide, errors.difference)
    )
    excess = other - own
    ratio, ratio_se = excess_ratio(excess, difference)
    size = math.sqrt(difference.mean() / own.mean()) if own.mean() > 0 else math.inf
    # (X - V) / (2 sqrt(V E_m)) is (r - 1) / 2 sqrt(V / E_m); nearly all of its error is that of r.
    correlation = None if ratio is None else (ratio - 1) / 2 * size
    correlation_se = None if ratio_se is None else ratio_se / 2 * size
    better = float(excess.mean()) < -2 * float(excess.std(ddof=1)) / math.sqrt(len(excess))
    verdict, reason = _verdict(size, correlation, correlation_se, better)
    if better:
        warnings = [*warnings, "the guide denoises better than the main model: swap them?"]
    return Diagnosis(
        main=main,
        guide=guide,
        verdict=verdict,
        reason=reason,
        warnings=tuple(warnings),
        size=size,
        correlation=correlation,
        correlation_se=correlation_se,
        best_weight=None if ratio is None else (1 + ratio) / 2,
        best_weight_se=None if ratio_se is None else ratio_se / 2,
        agreement=None if ratio is None else least_agreement(ratio),
        start_weight=_start_weight(size),
        core=(float(sigmas[core].min()), float(sigmas[core].max())),
        levels=errors.levels(),
        protocol=dict(protocol or {"sigma_data": sigma_data}),
    )


def _start_weight(size: float) -> float:
    return min(_MOST_START_WEIGHT, 1 + GUIDANCE_STRENGTH / size) if size > 0 else _MOST_START_WEIGHT


def _verdict(size: float, correlation: float | None, error: float | None, better: bool) -> tuple[Verdict, str]:
    apart = f"the models differ by {size:.2g} of the main model's error"
    if correlation is None or error is None:
        return "too similar", "the two models agree exactly: guidance would change nothing"
    if size < LEAST_SIZE:
        return "too similar", (
            f"{apart} (less than {LEAST_SIZE}), so that only large weights would show; choose an earlier, smaller or more averaged guide"
        )
    figures = f"correlation {correlation:.3f} ± {error:.3f}"
    if better:
        return "too far", f"the guide is the better model ({figures}), so their difference points away from the data"
    if correlation < 0:
        return "too far", (
            f"extrapolating moves away from the data ({figures} of the difference with what the main model misses): the guide's errors are "
            "of another kind"
        )
    if correlation < LEAST_CORRELATION:
        return "too far", (
            f"hardly any of the difference is the main model's own error ({figures}, less than {LEAST_CORRELATION}), {apart}; choose a "
            "guide that was trained for longer or is more like the main model"
        )
    return (
        "compatible",
        f"{apart}, in a direction that the main model's errors share ({figures}); begin with w near {1 + 0.4 / size:.2f}",
    )


def rank(diagnoses: Sequence[Diagnosis]) -> list[Diagnosis]:
    """The most promising guide first: compatible ones, then the others, each nearest to the best size first.

    Guides that point away from the data come last.
    """

    def key(found: Diagnosis) -> tuple[int, float]:
        away = found.correlation is None or found.correlation < 0
        group = 0 if found.verdict == "compatible" else 2 if away else 1
        return group, abs(math.log(found.size / BEST_SIZE)) if 0 < found.size < math.inf else math.inf

    return sorted(diagnoses, key=key)
