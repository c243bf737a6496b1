"""Measure pairs in worker processes: sample, extract features, Fréchet distance, cost.

One process per CPU core, each with one thread: sampling of small networks scales with processes and not with threads,
and image k is the same in every process. On a GPU one process. A worker keeps the models that it used last. A worker
whose parent is gone ends itself, so that a killed command leaves nothing running.
"""

import multiprocessing
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from autoguidance.errors import UserError
from autoguidance.evaluate import Reference, Statistics, batch_statistics, frechet_distance, open_network
from autoguidance.models import Precond
from autoguidance.sample import ClassSelection, Counted, image_encoder, micro_batch_size, sample_batches
from autoguidance.sample.files import join_batches, write_npz
from autoguidance.zoo import Pair, load

_MODELS_KEPT = 12


@dataclass(frozen=True, kw_only=True)
class Task:
    """One measurement.

    Attributes:
        pair: what to sample with.
        first_seed, num_images: seeds first_seed .. first_seed + num_images - 1.
        keep: write the images of the first `keep_images` seeds to this npz file.
    """

    pair: Pair
    first_seed: int
    num_images: int
    keep: Path | None = None
    keep_images: int = 0


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Its result.

    Attributes:
        fd: Fréchet distance.
        evaluations_main, evaluations_guide: network evaluations per image.
        seconds_per_image: of sampling, on one process.
    """

    fd: float
    evaluations_main: float
    evaluations_guide: float
    seconds_per_image: float


@dataclass(frozen=True, kw_only=True)
class MeasureSettings:
    """What every measurement shares.

    Attributes:
        features: name for `open_network`.
        reference: statistics file of the real set.
        classes: classes by seed (see `proportional_classes`); (): drawn by each image's generator.
        device: torch device of the workers.
        num_threads: threads per worker on a CPU.
    """

    features: str
    reference: Path
    channels: int
    resolution: int
    classes: tuple[int, ...] = ()
    device: str = "cpu"
    num_threads: int = 1


def end_with_parent() -> None:
    """End this process when its parent is gone (a killed command must leave nothing running)."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class _Worker:
    """State of a worker process."""

    def __init__(self, settings: MeasureSettings) -> None:
        self.settings = settings
        network = open_network(
            settings.features, channels=settings.channels, resolution=settings.resolution, device=settings.device
        )
        self.reference = Reference(network=network, statistics=Statistics.load(settings.reference))
        self.models: OrderedDict[str, Precond] = OrderedDict()

    def load(self, name: str) -> Precond:
        if name not in self.models:
            self.models[name] = load(name, device=self.settings.device)
        self.models.move_to_end(name)
        while len(self.models) > _MODELS_KEPT:
            self.models.popitem(last=False)
        return self.models[name]

    def measure(self, task: Task) -> Measured:
        counters: dict[str, Counted] = {}

        def loader(name: str) -> Counted:
            return counters.setdefault(name, Counted(self.load(name)))

        denoiser = task.pair.denoiser(device=self.settings.device, loader=loader)
        encoder = image_encoder(denoiser)
        size = micro_batch_size(denoiser)
        seeds = range(task.first_seed, task.first_seed + task.num_images)
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

        statistics = batch_statistics([self.reference.network], images(), what=task.pair.method)[0]
        rows = -(-task.num_images // size) * size  # the last micro-batch is padded; its cost is not the image's
        main = counters.pop(task.pair.main).num_evaluations
        if task.keep is not None:
            joined = join_batches(kept)
            write_npz(task.keep, joined, encoder.decode(joined.latents))
        return Measured(
            fd=frechet_distance(statistics, self.reference.statistics),
            evaluations_main=main / rows,
            evaluations_guide=sum(counter.num_evaluations for counter in counters.values()) / rows,
            seconds_per_image=sampling_seconds / task.num_images,
        )


_worker: _Worker | None = None


def _start(settings: MeasureSettings) -> None:
    global _worker  # (state of a worker process, set once when it starts)
    end_with_parent()
    torch.set_num_threads(settings.num_threads)
    _worker = _Worker(settings)


def _measure(task: Task) -> Measured | str:
    assert _worker is not None
    try:
        return _worker.measure(task)
    except UserError as error:  # an exception class with its own constructor does not survive pickling
        return str(error)


class Measurer:
    """A pool of workers. Use `with measurer(...)`."""

    def __init__(self, pool: ProcessPoolExecutor) -> None:
        self._pool = pool

    def measure(self, tasks: Sequence[Task], done: Callable[[int, Measured], None] | None = None) -> list[Measured]:
        """Results in the order of tasks; `done(index, result)` is called as each arrives.

        Raises: UserError where a measurement fails, or a worker dies (usually: out of memory).
        """
        results: dict[int, Measured] = {}
        try:
            waiting: dict[Future[Measured | str], int] = {
                self._pool.submit(_measure, task): index for index, task in enumerate(tasks)
            }
            while waiting:
                finished, _ = wait(waiting, return_when=FIRST_COMPLETED)
                for future in finished:
                    index, result = waiting.pop(future), future.result()
                    if isinstance(result, str):
                        raise UserError(result)
                    results[index] = result
                    if done is not None:
                        done(index, result)
        except BrokenProcessPool:
            raise UserError(
                "a measuring process died (out of memory?); free some memory and run the same command again"
            ) from None
        return [results[index] for index in range(len(tasks))]


@contextmanager
def measurer(settings: MeasureSettings, num_processes: int) -> Iterator[Measurer]:
    """A pool of `num_processes` workers that are ready for `Measurer.measure`."""
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(num_processes, mp_context=context, initializer=_start, initargs=(settings,))
    try:
        yield Measurer(pool)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
