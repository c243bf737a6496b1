"""Measure generated images against a real set: distances over repeats, as rows of results.json.

    fd_r = d^2(statistics of the r-th set of images, statistics of the reference)
    fd = mean of fd_r over r,   fd_std = their standard deviation (n - 1)

Images come as any iterator of uint8 batches, so a folder, an array file and a sampler that is still running are
measured alike, in one pass for all feature networks, without being kept. The repeats are disjoint sets (other seeds),
never one set measured twice.
"""

import statistics as stdlib_statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from autoguidance.data.source import ImageSource
from autoguidance.errors import UserError
from autoguidance.evaluate.features import FeatureNetwork, extract_features, image_batches, micro_batches
from autoguidance.evaluate.frechet import FrechetTerms, frechet_terms
from autoguidance.evaluate.protocol import Protocol
from autoguidance.evaluate.statistics import Accumulator, Statistics

ProgressCallback = Callable[[int, int, dict[str, Any]], None]


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The real set as one feature network sees it.

    Raises:
        UserError: the statistics were made with another network.
    """

    network: FeatureNetwork
    statistics: Statistics

    def __post_init__(self) -> None:
        recorded = self.statistics.record.get("features_sha256")
        if self.statistics.num_features != self.network.num_features or recorded not in (None, self.network.sha256):
            name = self.statistics.record.get("features", "another network")
            raise UserError(
                f"the reference was made with {name} {str(recorded)[:12]} ({self.statistics.num_features} features), "
                f"not with {self.network.name} {self.network.sha256[:12]} ({self.network.num_features} features); "
                "give that network's file, or make the reference again"
            )


def batch_statistics(
    networks: Sequence[FeatureNetwork],
    batches: Iterable[UInt8[Tensor, "n C H W"]],
    *,
    what: str = "the images",
    records: Sequence[Mapping[str, Any]] | None = None,
) -> list[Statistics]:
    """Statistics of a stream of images, one per network, in one pass; bitwise independent of the batch sizes.

    Args:
        networks: feature networks.
        batches: uint8 images.
        what: names the images in error messages.
        records: what to record about the origin, one per network.

    Raises:
        UserError: fewer than two images, images that a network does not take, or NaN features.
    """
    accumulators = [Accumulator(f"{network.name} features of {what}") for network in networks]
    for images, count in micro_batches(batches):
        for network, accumulator in zip(networks, accumulators, strict=True):
            with torch.inference_mode():
                features = network(images)
            accumulator.update(features[:count])
    kept = records if records is not None else [{}] * len(networks)
    return [accumulator.statistics(record) for accumulator, record in zip(accumulators, kept, strict=True)]


def _reported(
    batches: Iterable[Tensor], total: int, done: int, progress: ProgressCallback | None
) -> Iterator[UInt8[Tensor, "n C H W"]]:
    for batch in batches:
        yield batch
        done += len(batch)
        if progress is not None:
            progress(done, total, {})


def source_statistics(
    networks: Sequence[FeatureNetwork],
    source: ImageSource,
    *,
    indices: Sequence[int] | np.ndarray | None = None,
    progress: ProgressCallback | None = None,
) -> list[Statistics]:
    """Statistics of a real set (or of the images `indices` of it), one per network, with their origin in `record`."""
    total = source.num_images if indices is None else len(indices)
    batches = _reported(image_batches(source, indices), total, 0, progress)
    records = [
        {
            "features": network.name,
            "features_sha256": network.sha256,
            "source": source.name,
            "source_sha256": source.fingerprint,
            "whole_source": indices is None,
            "channels": source.channels,
            "resolution": source.resolution,
        }
        for network in networks
    ]
    return batch_statistics(networks, batches, what=source.name, records=records)


def half_distance(reference: Reference, source: ImageSource, *, repeats: int = 4, seed: int = 0) -> float:
    """Distance between a random half of the real set and all of it, a mean over `repeats` halves.

    It is about the least that a generator can reach with that many images, and not zero because half is a sample.

    Args:
        reference: statistics of the whole of `source`.
        source: the real set.
        repeats: halves drawn; a single one varies by tens of percent.
        seed: of the draws.

    Raises:
        UserError: fewer than four images.
    """
    network = reference.network
    generator = torch.Generator().manual_seed(seed)
    chosen = [torch.zeros(source.num_images, dtype=torch.bool) for _ in range(repeats)]
    for half in chosen:
        half[torch.randperm(source.num_images, generator=generator)[: source.num_images // 2]] = True
    halves = [Accumulator(f"{network.name} features of half of {source.name}") for _ in range(repeats)]
    start = 0
    for features in extract_features(network, image_batches(source)):
        for half, accumulator in zip(chosen, halves, strict=True):
            accumulator.update(features.cpu()[half[start : start + len(features)]])
        start += len(features)
    distances = [frechet_terms(half.statistics(), reference.statistics).distance for half in halves]
    return stdlib_statistics.fmean(distances)


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
        terms: per network name, the distances of the repeats with their parts.
        notes: what limits the figures; for `Protocol.notes`.
    """

    row: dict[str, Any]
    num_images: int
    terms: Mapping[str, tuple[FrechetTerms, ...]]
    notes: tuple[str, ...]


def _figures(values: Sequence[float]) -> dict[str, Any]:
    # One repeat has no spread: null, not zero.
    spread = stdlib_statistics.stdev(values) if len(values) > 1 else None
    return {"fd": stdlib_statistics.fmean(values), "fd_std": spread, "fd_repeats": list(values)}


def _notes(references: Sequence[Reference], terms: Mapping[str, Sequence[FrechetTerms]]) -> tuple[str, ...]:
    return tuple(
        f"{reference.network.name}: no more images than features ({reference.network.num_features}), so the covariance "
        "is singular and the distance strongly biased"
        for reference in references
        if any(term.few_images for term in terms[reference.network.name])
    )


def evaluate_images(
    repeats: Iterable[Iterable[UInt8[Tensor, "n C H W"]]],
    references: Sequence[Reference],
    *,
    method: str = "images",
    details: Mapping[str, Any] | None = None,
    total_images: int = 0,
    progress: ProgressCallback | None = None,
) -> Measurement:
    """Distances of generated images from the real set, over repeats.

    Args:
        repeats: per repeat, an iterator of uint8 image batches of any size; disjoint sets of equal count,
            consumed one after the other.
        references: the real set, per feature network; the first gives `fd`, all are listed under `features`.
        method: name of the row.
        details: further entries of the row: main, guide, weight, interval, evaluations_main, ...
        total_images: images in all repeats, for the progress.
        progress: called with (images done, total_images, {}).

    Returns:
        The row ({method, **details, fd, fd_std (None for one repeat), fd_repeats, features}) and what the
        protocol needs to know.

    Raises:
        UserError: no repeats, repeats of different counts, fewer than two images, or images that a network does
            not take.
    """
    names = [reference.network.name for reference in references]
    if not references or len(set(names)) != len(names):
        raise UserError(f"feature networks {', '.join(names) or '(none)'}: give at least one, each once")
    counts: list[int] = []
    terms: dict[str, list[FrechetTerms]] = {name: [] for name in names}
    for number, batches in enumerate(repeats, 1):
        reported = _reported(batches, total_images, sum(counts), progress)
        measured = batch_statistics([r.network for r in references], reported, what=f"{method}, repeat {number}")
        counts.append(measured[0].num)
        if counts[-1] != counts[0]:
            raise UserError(
                f"{method}: repeat {number} has {counts[-1]} images, the first {counts[0]}; give equal counts"
            )
        for reference, found in zip(references, measured, strict=True):
            terms[reference.network.name].append(frechet_terms(found, reference.statistics))
    if not counts:
        raise UserError(f"{method}: there is nothing to measure; give at least one repeat")
    figures = {name: _figures([term.distance for term in values]) for name, values in terms.items()}
    return Measurement(
        row={"method": method, **(details or {}), **figures[names[0]], "features": figures},
        num_images=counts[0],
        terms={name: tuple(values) for name, values in terms.items()},
        notes=_notes(references, terms),
    )


def protocol_of(measurement: Measurement, references: Sequence[Reference], **fields: Any) -> Protocol:
    """The protocol of a measurement. `fields`: class_sampling, seeds, solver, ... as in `Protocol`."""
    first = references[0]
    record = first.statistics.record
    return Protocol(
        features=first.network.name,
        features_sha256=first.network.sha256,
        num_images=measurement.num_images,
        reference=str(record.get("source", "unknown")),
        reference_sha256=str(record.get("source_sha256", "unknown")),
        num_real=first.statistics.num,
        repeats=len(measurement.row["fd_repeats"]),
        other_features={r.network.name: r.network.sha256 for r in references[1:]},
        notes=measurement.notes,
        **fields,
    )
