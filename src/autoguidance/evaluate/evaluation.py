"""Measure generated images against a real set: figures over repeats, as rows of results.json.

    fd_r = d^2(statistics of the r-th set of images, statistics of the reference), likewise kid_r, precision_r, ...
    fd = mean of fd_r over r,   fd_std = their standard deviation (n - 1),   fd_min = the least

Images come as any iterator of uint8 batches, or as `Images` that need not even be read, so a folder, an array file
and a sampler that is still running are measured alike: one pass for all feature networks and metrics, without keeping
the images. The repeats are disjoint sets (other seeds), never one set measured twice.
"""

import statistics as stdlib_statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from autoguidance.errors import UserError
from autoguidance.evaluate.feature_cache import FeatureCache
from autoguidance.evaluate.feature_sets import FeatureSet, Images, device_kind, feature_sets, stream_sets
from autoguidance.evaluate.frechet import FrechetTerms, frechet_terms
from autoguidance.evaluate.kid import Kid, KidSettings, kernel_distance
from autoguidance.evaluate.manifold import (
    NEIGHBOURS_DENSITY,
    NEIGHBOURS_PRECISION,
    ManifoldFigures,
    Neighbourhoods,
    manifold_figures,
    neighbourhoods,
)
from autoguidance.evaluate.processes import Processes
from autoguidance.evaluate.protocol import Protocol
from autoguidance.evaluate.references import Reference

ProgressCallback = Callable[[int, int, dict[str, Any]], None]

METRICS = ("fd", "kid", "prdc")
"""Fréchet distance; kernel distance; precision, recall, density and coverage."""


def _reported(
    batches: Iterable[Tensor], total: int, done: int, progress: ProgressCallback | None
) -> Iterator[UInt8[Tensor, "n C H W"]]:
    for batch in batches:
        yield batch
        done += len(batch)
        if progress is not None:
            progress(done, total, {})


def split_images(num_available: int, num: int | None, repeats: int, *, in_order: bool = False) -> list[np.ndarray]:
    """Disjoint sets of images for the repeats.

    Args:
        num_available: images there are.
        num: images per repeat; None: all, shared out equally.
        repeats: sets wanted.
        in_order: take consecutive images (seeds in order); otherwise draw them, because folders are sorted by class.

    Raises:
        UserError: there are too few images.
    """
    if repeats < 1:
        raise UserError(f"repeats is {repeats}; give at least 1")
    each = num_available // repeats if num is None else num
    if each < 2 or each * repeats > num_available:
        raise UserError(
            f"{repeats} x {max(each, 2)} images are needed and {num_available} are there; "
            "give more images, or a lower --num or --repeats"
        )
    order = np.arange(num_available)
    if not in_order:
        order = torch.randperm(num_available, generator=torch.Generator().manual_seed(0)).numpy()
    return [np.sort(order[start : start + each]) for start in range(0, each * repeats, each)]


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What `evaluate_images` found.

    Attributes:
        row: a row of results.json.
        num_images: images in each repeat.
        num_repeats: sets measured.
        terms: per network name, the Fréchet distances of the repeats with their parts; {} where none was asked for.
        metrics: per metric beyond the Fréchet distance, its settings; for `Protocol.metrics`.
        notes: what limits the figures; for `Protocol.notes`.
    """

    row: dict[str, Any]
    num_images: int
    num_repeats: int
    terms: Mapping[str, tuple[FrechetTerms, ...]]
    metrics: Mapping[str, Mapping[str, Any]]
    notes: tuple[str, ...]


def summary(name: str, values: Sequence[float]) -> dict[str, Any]:
    """{name: mean, name_std, name_min, name_repeats} of a figure's repeats; one repeat has no spread: None, not zero."""
    spread = stdlib_statistics.stdev(values) if len(values) > 1 else None
    return {
        name: stdlib_statistics.fmean(values),
        f"{name}_std": spread,
        f"{name}_min": min(values),
        f"{name}_repeats": list(values),
    }


def check_metrics(metrics: Sequence[str]) -> tuple[str, ...]:
    """The metrics in their usual order. Raises UserError for an unknown one, or none."""
    unknown = [name for name in metrics if name not in METRICS]
    if unknown or not metrics:
        raise UserError(f"metrics {', '.join(unknown) or '(none)'}: choose among {', '.join(METRICS)}")
    return tuple(name for name in METRICS if name in metrics)


class _Measure:
    """All metrics of one network, and what can be shared between repeats."""

    def __init__(
        self, reference: Reference, metrics: Sequence[str], kid: KidSettings, cache: FeatureCache, processes: Processes
    ) -> None:
        self.reference, self.metrics, self.kid_settings = reference, metrics, kid
        self.cache, self.processes = cache, processes
        self.device = getattr(reference.network, "device", "cpu")
        self.terms: list[FrechetTerms] = []
        self.kids: list[Kid] = []
        self.manifolds: list[ManifoldFigures] = []
        self._real: Neighbourhoods | None = None
        if reference.features is None and set(metrics) & {"kid", "prdc"}:
            raise UserError(
                f"the reference holds statistics of {reference.network.name} features but not the features, which "
                "KID and precision/recall need; give --ref DATA, or make the file by `autoguidance stats "
                "--keep-features`"
            )

    def _neighbourhoods(self, features: np.ndarray, key: Mapping[str, Any] | None, what: str) -> Neighbourhoods:
        def compute() -> dict[str, np.ndarray]:
            found = neighbourhoods(features, what=what, device=self.device, processes=self.processes)
            return {"radii2": found.radii2}

        whole = (
            None
            if key is None
            else {"features": dict(key), "holds": "radii", "neighbours": [NEIGHBOURS_PRECISION, NEIGHBOURS_DENSITY]}
        )
        radii2 = self.cache.arrays(whole, compute, self.processes)["radii2"]
        return Neighbourhoods(features=features, radii2=radii2)

    def add(self, found: FeatureSet, what: str) -> None:
        """Measure one repeat."""
        if "fd" in self.metrics:
            terms = self.processes.from_first(lambda: frechet_terms(found.statistics, self.reference.statistics))
            self.terms.append(terms)
        real = self.reference.features
        if real is None or found.features is None:
            return
        if "kid" in self.metrics:
            self.kids.append(
                kernel_distance(found.features, real, self.kid_settings, device=self.device, processes=self.processes)
            )
        if "prdc" in self.metrics:
            name = self.reference.network.name
            if self._real is None:
                self._real = self._neighbourhoods(real, self.reference.key, f"{name} features of the reference")
            made = self._neighbourhoods(found.features, found.key, f"{name} features of {what}")
            self.manifolds.append(manifold_figures(made, self._real, device=self.device, processes=self.processes))

    def figures(self) -> dict[str, Any]:
        """The figures as a row holds them."""
        found: dict[str, Any] = {}
        if self.terms:
            found |= summary("fd", [terms.distance for terms in self.terms])
        if self.kids:
            found |= summary("kid", [kid.mean for kid in self.kids])
            found["kid_subset_std"] = stdlib_statistics.fmean(kid.spread for kid in self.kids)
        if self.manifolds:
            for name in ("precision", "recall", "density", "coverage"):
                found |= summary(name, [getattr(figures, name) for figures in self.manifolds])
        return found

    def settings(self) -> dict[str, dict[str, Any]]:
        """How the metrics beyond the Fréchet distance were computed."""
        num_real = 0 if self.reference.features is None else len(self.reference.features)
        found: dict[str, dict[str, Any]] = {}
        if self.kids:
            described = {**self.kid_settings.describe(), "subset_size": self.kids[0].subset_size}
            found["kid"] = {**described, "num_real": num_real}
        if self.manifolds:
            neighbours = {"precision_recall": NEIGHBOURS_PRECISION, "density_coverage": NEIGHBOURS_DENSITY}
            found["prdc"] = {"neighbours": neighbours, "num_real": num_real}
        return found

    def note(self) -> str | None:
        """What limits the distance."""
        if not any(term.few_images for term in self.terms):
            return None
        return (
            f"{self.reference.network.name}: no more images than features ({self.reference.network.num_features}), so "
            "the covariance is singular and the distance strongly biased"
        )


class OtherFigures:
    """KID and the manifold figures of one set after another against one reference, whose neighbourhoods are computed once.

    Args:
        reference: with its features.
    """

    def __init__(self, reference: Reference) -> None:
        self._reference = reference

    def __call__(self, found: FeatureSet, metrics: Sequence[str]) -> dict[str, float]:
        """The figures by name: kid for "kid"; precision, recall, density, coverage for "prdc". Raises UserError where the
        reference was stored without features."""
        measure = self._measure
        before = len(measure.kids), len(measure.manifolds)
        measure.metrics = tuple(metrics)
        measure.add(found, "the images")
        figures: dict[str, float] = {}
        if len(measure.kids) > before[0]:
            figures["kid"] = measure.kids[-1].mean
        if len(measure.manifolds) > before[1]:
            last = measure.manifolds[-1]
            figures |= {name: getattr(last, name) for name in ("precision", "recall", "density", "coverage")}
        return figures

    @cached_property
    def _measure(self) -> "_Measure":
        return _Measure(self._reference, ("kid", "prdc"), KidSettings(), FeatureCache(None), Processes())


def evaluate_images(
    repeats: Iterable[Images | Iterable[UInt8[Tensor, "n C H W"]]],
    references: Sequence[Reference],
    *,
    method: str = "images",
    details: Mapping[str, Any] | None = None,
    metrics: Sequence[str] = ("fd",),
    kid: KidSettings | None = None,
    cache: FeatureCache | None = None,
    processes: Processes | None = None,
    total_images: int = 0,
    progress: ProgressCallback | None = None,
) -> Measurement:
    """Figures of generated images against the real set, over repeats.

    Args:
        repeats: per repeat, `Images`, or an iterator of uint8 image batches of any size (one process only, nothing
            cached); disjoint sets of equal count, consumed one after the other.
        references: the real set, per feature network; the first gives the row's own figures, all are listed under
            `features`.
        method: name of the row.
        details: further entries of the row: main, guide, weight, interval, evaluations_main, ...
        metrics: among `METRICS`.
        kid: subsets of KID; None: as usual.
        cache: where features, statistics and radii are kept; None: nowhere.
        processes: share the work; every process gets the result.
        total_images: images in all repeats, for the progress.
        progress: called with (images done, total_images, {}).

    Returns:
        The row ({method, **details, fd, fd_std (None for one repeat), fd_min, fd_repeats, likewise the other figures,
        features}) and what the protocol needs to know.

    Raises:
        UserError: no repeats, repeats of different counts, fewer than two images, images that a network does not
            take, or a metric whose reference is lacking.
    """
    names = [reference.network.name for reference in references]
    if not references or len(set(names)) != len(names):
        raise UserError(f"feature networks {', '.join(names) or '(none)'}: give at least one, each once")
    metrics = check_metrics(metrics)
    cache, processes = cache or FeatureCache(None), processes or Processes()
    measures = [_Measure(reference, metrics, kid or KidSettings(), cache, processes) for reference in references]
    networks = [reference.network for reference in references]
    with_features = bool(set(metrics) & {"kid", "prdc"})
    counts: list[int] = []
    for number, images in enumerate(repeats, 1):
        what = f"{method}, repeat {number}"
        before = sum(counts)
        if isinstance(images, Images):

            def report(done: int, part: int, _: dict[str, Any], start: int = before, num: int = images.num) -> None:
                if progress is not None:
                    progress(start + done * num // max(part, 1), total_images, {})

            keep = images.num if with_features else 0
            found = feature_sets(images, networks, keep=keep, cache=cache, processes=processes, progress=report)
        else:
            reported = _reported(images, total_images, before, progress)
            found = stream_sets(networks, reported, what=what, keep=with_features)
        counts.append(found[0].statistics.num)
        if counts[-1] != counts[0]:
            raise UserError(
                f"{method}: repeat {number} has {counts[-1]} images, the first {counts[0]}; give equal counts"
            )
        for measure, entry in zip(measures, found, strict=True):
            measure.add(entry, what)
    if not counts:
        raise UserError(f"{method}: there is nothing to measure; give at least one repeat")
    figures = {name: measure.figures() for name, measure in zip(names, measures, strict=True)}
    return Measurement(
        row={"method": method, **(details or {}), **figures[names[0]], "features": figures},
        num_images=counts[0],
        num_repeats=len(counts),
        terms={name: tuple(measure.terms) for name, measure in zip(names, measures, strict=True) if measure.terms},
        metrics=measures[0].settings(),
        notes=tuple(note for measure in measures if (note := measure.note()) is not None),
    )


def planned_protocol(references: Sequence[Reference], num_images: int, repeats: int, **fields: Any) -> Protocol:
    """The protocol of a measurement that is still to be made, so that a comparison can be refused before its work."""
    first = references[0]
    record = first.statistics.record
    return Protocol(
        features=first.network.name,
        features_sha256=first.network.sha256,
        num_images=num_images,
        reference=str(record.get("source", "unknown")),
        reference_sha256=str(record.get("source_sha256") or f"statistics {first.statistics.sha256}"),
        num_real=first.statistics.num,
        repeats=repeats,
        resize=str(getattr(first.network, "resize", "none")),
        device=device_kind(first.network),
        other_features={r.network.name: r.network.sha256 for r in references[1:]},
        **fields,
    )


def protocol_of(measurement: Measurement, references: Sequence[Reference], **fields: Any) -> Protocol:
    """The protocol of a measurement. `fields`: class_sampling, seeds, solver, ... as in `Protocol`."""
    settings = {"metrics": measurement.metrics, "notes": measurement.notes, **fields}
    return planned_protocol(references, measurement.num_images, measurement.num_repeats, **settings)
