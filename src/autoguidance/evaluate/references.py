"""The real set as feature networks see it: what every generated set is compared with.

A reference is made once, from images in one pass for all networks (and kept in the cache by the set's fingerprint), or
read from a file of `autoguidance stats`. Its statistics are of the whole set. KID and the manifold figures look at
pairs of images and need the features themselves; of a large set a sample is kept for them.
"""

import statistics as stdlib_statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from autoguidance.data.source import ImageSource
from autoguidance.errors import UserError
from autoguidance.evaluate.feature_cache import FeatureCache
from autoguidance.evaluate.feature_sets import Images, ProgressCallback, feature_sets, stream_sets
from autoguidance.evaluate.features import FeatureNetwork, extract_features, image_batches
from autoguidance.evaluate.frechet import frechet_terms
from autoguidance.evaluate.processes import Processes
from autoguidance.evaluate.statistics import Accumulator, Statistics

NUM_REAL_KEPT = 50_000
"""Real images behind KID and the manifold figures, at most: the published protocols take 50,000 against 50,000."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The real set as one feature network sees it.

    Attributes:
        network, statistics: of the whole set.
        features: float32 [k, d] of (a sample of) its images, for KID and the manifold figures; None: not kept.
        key: identity of the features in a cache; None: unknown.

    Raises:
        UserError: the statistics were made with another network.
    """

    network: FeatureNetwork
    statistics: Statistics
    features: Float[np.ndarray, "k d"] | None = field(default=None, repr=False, compare=False)
    key: Mapping[str, Any] | None = field(default=None, repr=False, compare=False)

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
    return [found.statistics for found in stream_sets(networks, batches, what=what, records=records)]


def source_images(source: ImageSource, indices: Sequence[int] | np.ndarray | None = None) -> Images:
    """A real set (or the images `indices` of it) as `Images`, with the fingerprint as its identity."""
    order = None if indices is None else np.asarray(indices, dtype=np.int64)
    chosen = np.arange(source.num_images) if order is None else order
    # A selection is named by its indices; few ever ask for one, so their list may be long.
    key = {"source_sha256": source.fingerprint, "indices": None if order is None else order.tolist()}
    return Images(
        num=len(chosen),
        batches=lambda part: image_batches(source, chosen[part.start : part.stop]),
        key=key,
        what=source.name,
    )


def source_records(
    networks: Sequence[FeatureNetwork], source: ImageSource, *, whole: bool = True
) -> list[dict[str, Any]]:
    """What statistics of a real set record of their origin, one per network."""
    return [
        {
            "features": network.name,
            "features_sha256": network.sha256,
            "source": source.name,
            "source_sha256": source.fingerprint,
            "whole_source": whole,
            "channels": source.channels,
            "resolution": source.resolution,
        }
        for network in networks
    ]


def source_statistics(
    networks: Sequence[FeatureNetwork],
    source: ImageSource,
    *,
    indices: Sequence[int] | np.ndarray | None = None,
    cache: FeatureCache | None = None,
    progress: ProgressCallback | None = None,
) -> list[Statistics]:
    """Statistics of a real set (or of the images `indices` of it), one per network, with their origin in `record`."""
    records = source_records(networks, source, whole=indices is None)
    images = source_images(source, indices)
    found = feature_sets(images, networks, records=records, cache=cache, progress=progress)
    return [entry.statistics for entry in found]


def source_references(
    networks: Sequence[FeatureNetwork],
    source: ImageSource,
    *,
    keep: int = 0,
    cache: FeatureCache | None = None,
    processes: Processes | None = None,
    progress: ProgressCallback | None = None,
) -> list[Reference]:
    """A real set as each network sees it, in one pass.

    Args:
        keep: features to hold, at most; KID and the manifold figures need them (`NUM_REAL_KEPT`).
        cache, processes, progress: as for `feature_sets`.
    """
    found = feature_sets(
        source_images(source),
        networks,
        keep=keep,
        records=source_records(networks, source),
        cache=cache,
        processes=processes,
        progress=progress,
    )
    return [
        Reference(network=network, statistics=entry.statistics, features=entry.features, key=entry.key)
        for network, entry in zip(networks, found, strict=True)
    ]


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
