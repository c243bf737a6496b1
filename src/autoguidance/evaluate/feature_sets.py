"""Images to what the metrics need of them, in one pass for all networks, shared by processes, and never twice.

    images --network--> features f_1 .. f_n [n, d] --> statistics (mean, covariance) for the Fréchet distance
                                                   --> the features themselves (float32) for KID and the manifold

The statistics are streamed: where nothing else is asked for, no features are held. Where features are kept, a sample
of at most `keep` images is, drawn with a fixed seed, because a reference may be far larger than what a metric over
pairs can take; the statistics are of all images in any case.

`Images` names a set without reading it: how many, how to get those with given positions, and its identity (`key`). A
set whose results are in the cache is never read.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from autoguidance.errors import UserError
from autoguidance.evaluate.feature_cache import FeatureCache
from autoguidance.evaluate.features import MICRO_BATCH, FeatureNetwork, micro_batches
from autoguidance.evaluate.processes import Processes
from autoguidance.evaluate.statistics import DAMAGED_ARCHIVE, Accumulator, Statistics

ProgressCallback = Callable[[int, int, dict[str, Any]], None]

_KEEP_SEED = 0


@dataclass(frozen=True, kw_only=True)
class Images:
    """A set of images that has not been read.

    Attributes:
        num: n.
        batches: positions (a range within 0 .. n - 1) -> these images in order, uint8, in batches of any size.
        key: JSON-like identity; equal only where every pixel is. None: unknown, and nothing is cached.
        what: names the set in error messages.
    """

    num: int
    batches: Callable[[range], Iterable[UInt8[Tensor, "n C H W"]]]
    key: Mapping[str, Any] | None = None
    what: str = "the images"


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureSet:
    """What one network makes of a set.

    Attributes:
        statistics: of all its images.
        features: float32 [k, d] of the images kept, in order; None where none were asked for.
        key: identity of the features, for what is computed from them; None: unknown.
    """

    statistics: Statistics
    features: Float[np.ndarray, "k d"] | None = None
    key: Mapping[str, Any] | None = None


def kept_positions(num: int, keep: int) -> np.ndarray:
    """Positions, sorted, of the images whose features are kept: all, or a sample of `keep` drawn with a fixed seed."""
    if keep >= num:
        return np.arange(num)
    return np.sort(np.random.default_rng(_KEEP_SEED).permutation(num)[:keep])


def device_kind(network: FeatureNetwork) -> str:
    """Kind of device on which a network runs: results differ between kinds by rounding."""
    return torch.device(getattr(network, "device", "cpu")).type


def feature_stream(
    networks: Sequence[FeatureNetwork], batches: Iterable[UInt8[Tensor, "n C H W"]]
) -> Iterator[list[Float[Tensor, "m d"]]]:
    """Features of a stream of images, one block per network, in one pass; the same for any batch sizes."""
    for images, count in micro_batches(batches):
        with torch.inference_mode():
            yield [network(images)[:count] for network in networks]


def _collect(
    networks: Sequence[FeatureNetwork],
    batches: Iterable[UInt8[Tensor, "n C H W"]],
    what: str,
    *,
    start: int = 0,
    chosen: np.ndarray | None = None,
    report: Callable[[int], None] | None = None,
) -> tuple[list[Accumulator], list[np.ndarray], int]:
    """Statistics of a stream that begins at position `start`, the features of the positions `chosen` (None: of all),
    and the position where it ends."""
    accumulators = [Accumulator(f"{network.name} features of {what}") for network in networks]
    kept: list[list[np.ndarray]] = [[] for _ in networks]
    here = start
    for blocks in feature_stream(networks, batches):
        count = len(blocks[0])
        if chosen is None:
            rows = np.arange(count)
        else:
            rows = chosen[np.searchsorted(chosen, here) : np.searchsorted(chosen, here + count)] - here
        for block, accumulator, rows_kept in zip(blocks, accumulators, kept, strict=True):
            accumulator.update(block)
            if len(rows):
                rows_kept.append(block.cpu().float().numpy()[rows])
        here += count
        if report is not None:
            report(here - start)
    empty = [np.empty((0, network.num_features), np.float32) for network in networks]
    return accumulators, [np.concatenate([none, *rows]) for none, rows in zip(empty, kept, strict=True)], here


def stream_sets(
    networks: Sequence[FeatureNetwork],
    batches: Iterable[UInt8[Tensor, "n C H W"]],
    *,
    what: str = "the images",
    records: Sequence[Mapping[str, Any]] | None = None,
    keep: bool = False,
) -> list[FeatureSet]:
    """What each network makes of a stream of images of unknown length, in one pass; nothing is cached.

    Args:
        keep: hold the features of every image.

    Raises:
        UserError: as `feature_sets`.
    """
    chosen = None if keep else np.empty(0, np.int64)
    accumulators, kept, _ = _collect(networks, batches, what, chosen=chosen)
    records = records if records is not None else [{}] * len(networks)
    return [
        FeatureSet(statistics=accumulator.statistics(record), features=features if keep else None)
        for accumulator, features, record in zip(accumulators, kept, records, strict=True)
    ]


def _keys(images: Images, network: FeatureNetwork, keep: int) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Keys of the statistics and of the features."""
    if images.key is None:
        return None, None
    base = {
        "images": dict(images.key),
        "num_images": images.num,
        "features_sha256": network.sha256,
        "device": device_kind(network),
        "micro_batch": MICRO_BATCH,
    }
    return {**base, "holds": "statistics"}, {**base, "holds": "features", "kept": min(keep, images.num)}


def _cached(
    cache: FeatureCache, keys: tuple[dict[str, Any] | None, dict[str, Any] | None], keep: int, num: int
) -> FeatureSet | None:
    """What the cache holds, if it is all that is asked for."""
    arrays = cache.load(keys[0])
    if arrays is None:
        return None
    try:
        statistics = Statistics.from_arrays(arrays)
    except DAMAGED_ARCHIVE:
        return None
    if not keep:
        return FeatureSet(statistics=statistics)
    found = cache.load(keys[1])
    features = None if found is None else found.get("features")
    expected = (min(keep, num), statistics.num_features)
    if features is None or features.shape != expected or features.dtype != np.float32:
        return None
    return FeatureSet(statistics=statistics, features=features, key=keys[1])


def feature_sets(
    images: Images,
    networks: Sequence[FeatureNetwork],
    *,
    keep: int = 0,
    records: Sequence[Mapping[str, Any]] | None = None,
    cache: FeatureCache | None = None,
    processes: Processes | None = None,
    progress: ProgressCallback | None = None,
) -> list[FeatureSet]:
    """What each network makes of a set of images: from the cache, or in one pass for all that is not there.

    Args:
        images: the set.
        networks: feature networks.
        keep: features to hold, at most; 0: statistics only.
        records: what the statistics record of their origin, one per network.
        cache: None: nothing is kept.
        processes: each computes a part of the images; all get the whole.
        progress: called with (images done by this process, its images, {}).

    Returns: one set per network. With one process bitwise the same for any batch sizes; with several the statistics are
        pooled exactly and differ by rounding, the features not at all.

    Raises:
        UserError: fewer than two images, images that a network does not take, or NaN features.
    """
    cache = cache or FeatureCache(None)
    processes = processes or Processes()
    records = records if records is not None else [{}] * len(networks)
    keys = [_keys(images, network, keep) for network in networks]
    found = [_cached(cache, pair, keep, images.num) for pair in keys]
    # Each looks into its own file system, which on several machines may differ.
    everywhere = processes.gather([entry is not None for entry in found])
    missing = [k for k in range(len(networks)) if not all(flags[k] for flags in everywhere)]
    if missing:
        wanted = [networks[k] for k in missing]
        chosen = kept_positions(images.num, keep)
        part = processes.part(images.num)

        def report(done: int) -> None:
            if progress is not None:
                progress(done, len(part), {})

        def collect() -> tuple[list[Accumulator], list[np.ndarray]]:
            batches = images.batches(part)
            accumulators, kept, end = _collect(
                wanted, batches, images.what, start=part.start, chosen=chosen, report=report
            )
            if end != part.stop:
                raise UserError(
                    f"{images.what}: {end - part.start} images came instead of {len(part)}; check the files"
                )
            return accumulators, kept

        parts = processes.gather(processes.together(collect))
        for position, k in enumerate(missing):
            # One process keeps its own accumulator: pooling it into an empty one gives the same bits.
            whole = Accumulator(parts[0][0][position].what)
            for accumulators, _ in parts:
                whole.merge(accumulators[position])
            statistics = whole.statistics({**records[k]})
            features = np.concatenate([rows[position] for _, rows in parts]) if keep else None
            found[k] = FeatureSet(statistics=statistics, features=features, key=keys[k][1] if keep else None)
            if processes.rank == 0:
                cache.store(keys[k][0], statistics.arrays())
                if features is not None:
                    cache.store(keys[k][1], {"features": features})
    # The record names the set as this call does, whatever it was called when it was stored.
    return [
        FeatureSet(
            statistics=Statistics(e.statistics.mean, e.statistics.covariance, e.statistics.num, dict(record)),
            features=e.features,
            key=e.key,
        )
        for e, record in zip(found, records, strict=True)
        if e is not None
    ]
