"""Measure pairs in worker processes: sample, extract features, Fréchet distance, cost.

One process per CPU core, each with one thread: sampling of small networks scales with processes and not with threads,
and image k is the same in every process. On a GPU one process. A worker keeps the models that it used last. A worker
whose parent is gone ends itself, so that a killed command leaves nothing running.

A measurement on n images is the first part of one on more images of the same seeds, so its statistics are kept
(`MeasureSettings.partial`), and the larger one samples only what is missing.
"""

import hashlib
import json
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch

from autoguidance.errors import NotFiniteError, UserError
from autoguidance.evaluate import Reference, Statistics, batch_statistics, frechet_distance, open_network
from autoguidance.evaluate.evaluation import OtherFigures
from autoguidance.evaluate.feature_sets import stream_sets
from autoguidance.evaluate.statistics import pool_statistics, read_statistics_file
from autoguidance.models import Precond
from autoguidance.sample import ClassSelection, Counted, image_encoder, micro_batch_size, sample_batches
from autoguidance.sample.files import join_batches, write_npz
from autoguidance.storage import make_folder
from autoguidance.tune.workers import begin_worker, worker_context
from autoguidance.zoo import Pair, is_remote, load, parse_model_name
from autoguidance.zoo.identity import content_key
from autoguidance.zoo.names import write_model

_MODELS_KEPT = 12
_AVERAGES_KEPT = 40  # files: of EDM2-XL about 40 GB
_DIED = "a measuring process died (out of memory?); free some memory and run the same command again"


@dataclass(frozen=True, kw_only=True)
class Task:
    """One measurement.

    Attributes:
        pair: what to sample with.
        first_seed, num_images: seeds first_seed .. first_seed + num_images - 1.
        keep: write the images of the first `keep_images` seeds to this npz file.
        extend: keep the statistics for a later measurement on more images, and use those that are kept.
        metrics: beyond the Fréchet distance: "kid", "prdc". They need the reference's features, and do not go together with `extend`.
    """

    pair: Pair
    first_seed: int
    num_images: int
    keep: Path | None = None
    keep_images: int = 0
    extend: bool = False
    metrics: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Its result.

    Attributes:
        fd: Fréchet distance.
        evaluations_main, evaluations_guide: network evaluations per image.
        seconds_per_image: of sampling, on one process.
        new_images: images that had to be sampled; the others were known from a measurement on fewer.
        figures: further metrics by name: kid, precision, recall, density, coverage.
    """

    fd: float
    evaluations_main: float
    evaluations_guide: float
    seconds_per_image: float
    new_images: int = 0
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class MeasureSettings:
    """What every measurement shares.

    Attributes:
        features: name for `open_network`.
        reference: statistics file of the real set.
        classes: classes by seed (see `proportional_classes`); (): drawn by each image's generator.
        device: torch device of the workers.
        dtype: of the networks' bodies, as for `load`.
        num_threads: threads per worker on a CPU.
        partial: folder for statistics that a measurement on more images goes on from; None: nothing is kept.
        models: folder for post-hoc averages, so that each is made once for all workers; None: every worker makes its own.
    """

    features: str
    reference: Path
    channels: int
    resolution: int
    classes: tuple[int, ...] = ()
    device: str = "cpu"
    dtype: torch.dtype | None = None
    num_threads: int = 1
    partial: Path | None = None
    models: Path | None = None


class _Worker:
    """State of a worker process."""

    def __init__(self, settings: MeasureSettings) -> None:
        self.settings = settings
        network = open_network(
            settings.features, channels=settings.channels, resolution=settings.resolution, device=settings.device
        )
        statistics, features = read_statistics_file(settings.reference, with_features=True)
        self.reference = Reference(network=network, statistics=statistics, features=features)
        self.other_figures = OtherFigures(self.reference)
        self.models: OrderedDict[str, Precond] = OrderedDict()

    def load(self, name: str) -> Precond:
        if name not in self.models:
            self.models[name] = self._open(name)
        self.models.move_to_end(name)
        while len(self.models) > _MODELS_KEPT:
            self.models.popitem(last=False)
        return self.models[name]

    def _open(self, name: str) -> Precond:
        averaged = self._averaged(name)
        if averaged is not None:
            with suppress(UserError):  # another worker has removed it, as the oldest, in this very moment
                return load(averaged, device=self.settings.device, dtype=self.settings.dtype)
        return load(name, device=self.settings.device, dtype=self.settings.dtype)

    def _averaged(self, name: str) -> Path | None:
        """The file of a run's post-hoc average, made if it is not there; None: the name is a model file already."""
        folder = self.settings.models
        if folder is None or is_remote(name) or not parse_model_name(name).path.is_dir():
            return None
        key = hashlib.sha256(json.dumps(content_key(name), sort_keys=True).encode()).hexdigest()[:24]
        path = folder / f"{key}.safetensors"
        if path.exists():
            os.utime(path)
            return path
        make_folder(folder)
        kept = sorted(folder.glob("*.safetensors"), key=_last_used)
        for file in kept[: max(0, len(kept) + 1 - _AVERAGES_KEPT)]:
            file.unlink(missing_ok=True)
        write_model(name, path)
        return path

    def measure(self, task: Task) -> Measured:
        counters: dict[str, Counted] = {}

        def loader(name: str) -> Counted:
            return counters.setdefault(name, Counted(self.load(name)))

        denoiser = task.pair.denoiser(device=self.settings.device, loader=loader)
        encoder = image_encoder(denoiser)
        size = micro_batch_size(denoiser)
        partial = self._partial(task) if task.extend else None
        known = _largest(partial, task.num_images) if partial is not None else None
        num_known = known.num if known is not None else 0
        seeds = range(task.first_seed + num_known, task.first_seed + task.num_images)
        kept = []
        sampling_seconds = 0.0

        def images() -> Iterator[torch.Tensor]:
            nonlocal sampling_seconds
            selection = ClassSelection(self.settings.classes or None, denoiser.num_classes)
            batches = sample_batches(denoiser, seeds, classes=selection, solver=task.pair.solver, batch_size=size)
            while True:
                start = time.perf_counter()
                batch = next(batches, None)
                sampling_seconds += time.perf_counter() - start
                if batch is None:
                    return
                if task.keep is not None and sum(len(part.seeds) for part in kept) < task.keep_images:
                    kept.append(batch)
                yield encoder.decode(batch.latents)

        figures: dict[str, float] = {}
        if task.metrics:
            found = stream_sets([self.reference.network], images(), what=task.pair.method, keep=True)[0]
            statistics, figures = found.statistics, self.other_figures(found, task.metrics)
        else:
            statistics = self._statistics(images(), known, task)
        if partial is not None and statistics.num > num_known:
            make_folder(partial)
            statistics.save(partial / f"{statistics.num}.npz")
        rows = max(1, -(-len(seeds) // size) * size)  # the last micro-batch is padded; its cost is not the image's
        main = counters.pop(task.pair.main).num_evaluations
        if task.keep is not None:
            joined = join_batches(kept)
            write_npz(task.keep, joined, encoder.decode(joined.latents))
        return Measured(
            fd=frechet_distance(statistics, self.reference.statistics),
            evaluations_main=main / rows,
            evaluations_guide=sum(counter.num_evaluations for counter in counters.values()) / rows,
            seconds_per_image=sampling_seconds / max(1, len(seeds)),
            new_images=len(seeds),
            figures=figures,
        )

    def _statistics(self, images: Iterator[torch.Tensor], known: Statistics | None, task: Task) -> Statistics:
        if known is not None and known.num == task.num_images:
            return known
        statistics = batch_statistics([self.reference.network], images, what=task.pair.method)[0]
        return statistics if known is None else pool_statistics(known, statistics)

    def _partial(self, task: Task) -> Path | None:
        """Folder of the statistics of this setting's images; None: the settings name none."""
        if self.settings.partial is None:
            return None
        pair = task.pair
        solver = pair.solver.describe() if pair.solver is not None else None
        content = [pair.main, pair.guide, pair.weight, pair.unconditional, pair.cfg_weight, pair.interval, solver]
        content += [pair.truncation] if pair.truncation != 1 else []
        if pair.main_degraded or pair.guide_degraded:
            content += [str(pair.main_degraded), str(pair.guide_degraded)]
        content += [task.first_seed, self.settings.classes, self.reference.network.sha256, str(self.settings.dtype)]
        return self.settings.partial / hashlib.sha256(json.dumps(content).encode()).hexdigest()[:24]


def _last_used(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except FileNotFoundError:  # removed by another worker
        return 0.0


def _largest(folder: Path, num_images: int) -> Statistics | None:
    """The statistics of the most images, at most num_images, that were kept; None: of none. What is damaged does not count."""
    for path in sorted(folder.glob("*.npz"), key=lambda path: -int(path.stem)):
        if int(path.stem) <= num_images:
            try:
                return Statistics.load(path)
            except UserError:
                continue
    return None


@dataclass(frozen=True)
class _Failure:
    """Why a measurement could not be made."""

    message: str
    not_finite: bool


Pending = Future[Measured | _Failure]
"""A measurement under way."""

_worker: _Worker | None = None


def _start(settings: MeasureSettings, environment: dict[str, str]) -> None:
    global _worker  # (state of a worker process, set once when it starts)
    begin_worker(environment)
    torch.set_num_threads(settings.num_threads)
    _worker = _Worker(settings)


def _measure(task: Task) -> "Measured | _Failure":
    assert _worker is not None
    try:
        return _worker.measure(task)
    except UserError as error:  # an exception class with its own constructor does not survive pickling
        return _Failure(str(error), isinstance(error, NotFiniteError))


class Measurer:
    """A pool of workers. Use `with measurer(...)`."""

    def __init__(self, pool: ProcessPoolExecutor, num_processes: int) -> None:
        self._pool = pool
        self.num_processes = num_processes

    def submit(self, task: Task) -> Pending:
        """Begin a measurement; its result is given to `result`."""
        try:
            return self._pool.submit(_measure, task)
        except BrokenProcessPool:
            raise UserError(_DIED) from None

    def result(self, future: Pending) -> Measured:
        """The result of a measurement. Raises: NotFiniteError where these settings give no distance; UserError where it failed
        otherwise, or a worker died (usually: out of memory)."""
        try:
            found = future.result()
        except BrokenProcessPool:
            raise UserError(_DIED) from None
        if isinstance(found, _Failure):
            raise NotFiniteError(found.message) if found.not_finite else UserError(found.message)
        return found

    def measure(self, tasks: Sequence[Task], done: Callable[[int, Measured], None] | None = None) -> list[Measured]:
        """Results in the order of tasks; `done(index, result)` is called as each arrives. Raises: as `result`."""
        results: dict[int, Measured] = {}
        waiting = {self.submit(task): index for index, task in enumerate(tasks)}
        while waiting:
            finished, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in finished:
                index = waiting.pop(future)
                results[index] = self.result(future)
                if done is not None:
                    done(index, results[index])
        return [results[index] for index in range(len(tasks))]


@contextmanager
def measurer(settings: MeasureSettings, num_processes: int) -> Iterator[Measurer]:
    """A pool of `num_processes` workers that are ready for `Measurer.measure`."""
    start = (settings, dict(os.environ))
    pool = ProcessPoolExecutor(
        num_processes, mp_context=worker_context(settings.device), initializer=_start, initargs=start
    )
    try:
        yield Measurer(pool, num_processes)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
