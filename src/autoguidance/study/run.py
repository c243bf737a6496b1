"""The whole way once: images -> main model and its bad version -> the best setting -> comparison -> results, pair and
report.

Stages, each of which leaves files and is skipped when they are there, so that the same command goes on after an
interruption:

    plan       plan.json                         sizes and lengths for the time that is there
    train      main/ guide/ unconditional/ classifier.safetensors
    reference  reference.npz                     statistics of the real images
    search     search.jsonl                      every setting measured, on seeds of their own
    compare    compare.jsonl, images/*.npz       each method at its best setting, on fresh seeds, over repeats
    report     results.json, pair.json, report.html

Seeds: the comparison uses seed_base + 0 .. repeats * num_images - 1, the search seed_base + 5,000,000 and on.
"""

import fcntl
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from autoguidance.data.open import open_data
from autoguidance.data.source import ImageSource
from autoguidance.errors import UserError
from autoguidance.evaluate import Reference, Statistics, half_distance, open_network, source_statistics
from autoguidance.report.page import write_report
from autoguidance.sample import Heun, proportional_classes
from autoguidance.storage import append_json_line, make_folder, read_json, read_json_lines, write_json
from autoguidance.study.plan import (
    DEFAULT_MINUTES,
    OTHER_MINUTES,
    MeasurePlan,
    TrainPlan,
    plan_measuring,
    plan_training,
    to_json,
    training_configs,
)
from autoguidance.study.records import (
    describe_dataset,
    describe_pair,
    describe_task,
    describe_training,
    keep_real,
    record_key,
    run_protocol,
    summary,
)
from autoguidance.study.training import Job, run_jobs
from autoguidance.train.config import TrainConfig
from autoguidance.tune import (
    Measured,
    Measurer,
    MeasureSettings,
    SearchSpace,
    Task,
    coordinate_search,
    early_snapshots,
    guide_source,
    measurer,
)
from autoguidance.zoo import Pair

ProgressCallback = Callable[[int, int, dict[str, Any]], None]
Stage = Callable[[str], AbstractContextManager[ProgressCallback | None]]

SEARCH_SEEDS = 5_000_000
SEEDS_PER_RUN = 10_000_000
IMAGES_KEPT = 64
SOLVER = Heun(num_steps=12)
"""12 Heun steps: on data this small, more steps change the distance by less than its spread, and every evaluation counts."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What the user asked for.

    Attributes:
        data: a data set's name.
        out: folder of the run.
        minutes: budget; None: 6.5 for digits, 60 otherwise.
        seed: fixes everything random.
        resolution: crop and resize images to this; None: as they are.
        preset: size of the main network; None: by resolution.
        device: torch device.
        num_processes: worker processes on a CPU.
    """

    data: str
    out: Path
    minutes: float | None = None
    seed: int = 0
    resolution: int | None = None
    preset: str | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    num_processes: int = 2

    def __post_init__(self) -> None:
        if self.minutes is not None and not 0 < self.minutes < math.inf:
            raise UserError(f"--minutes {self.minutes}: give a positive number of minutes")
        if self.num_processes < 1:
            raise UserError(f"--processes {self.num_processes}: give at least 1")
        if self.seed < 0:
            raise UserError(f"--seed {self.seed}: give a whole number of at least 0")

    @property
    def on_gpu(self) -> bool:
        """Whether the work is done on a GPU, by one process."""
        return self.device.type == "cuda"

    @property
    def workers(self) -> int:
        """Processes that measure."""
        return 1 if self.on_gpu else self.num_processes

    @property
    def budget_seconds(self) -> float:
        """The budget in seconds."""
        return 60 * (self.minutes if self.minutes is not None else DEFAULT_MINUTES.get(self.data, OTHER_MINUTES))

    @property
    def seed_base(self) -> int:
        """First seed of the run's images."""
        return self.seed * SEEDS_PER_RUN


def run(config: RunConfig, stage: Stage | None = None) -> dict[str, Any]:
    """Do the whole way, or what is left of it.

    Args:
        config: what to do and where.
        stage: given a stage's title, a context manager that yields a progress callback; None: silent.

    Returns: the content of results.json.
    Raises: UserError where the data cannot be used, the folder holds another run or cannot be written.
    """
    stage = stage or (lambda title: nullcontext())
    make_folder(config.out)
    with _alone(config.out):
        with stage("check images") as progress:
            source = open_data(config.data, resolution=config.resolution, progress=progress)
        return _Run(config, source, stage).go()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"another process is working in {folder}; wait for it, or choose another folder with --out"
            ) from None
        yield


class _Run:
    def __init__(self, config: RunConfig, source: ImageSource, stage: Stage) -> None:
        self.config, self.source, self.stage = config, source, stage
        self.out = config.out
        self.seconds: dict[str, float] = {}

    def go(self) -> dict[str, Any]:
        self._begin()
        if (self.out / "report.html").exists():  # written last: the run is complete
            return read_json(self.out / "results.json")
        plan = self._plan()
        configs = training_configs(plan, self.source, self.config.seed, on_gpu=self.config.on_gpu)
        self._train(configs)
        reference = self._reference()
        measuring = self._plan_measuring(plan, self.config.budget_seconds - sum(self.seconds.values()))
        settings = MeasureSettings(
            features=self._features,
            reference=self.out / "reference.npz",
            channels=self.source.channels,
            resolution=self.source.resolution,
            classes=self._classes,
            device=str(self.config.device),
        )
        best, rows = self._measure(settings, measuring)
        self._keep_images()
        protocol = run_protocol(self.source, reference[0], measuring, SOLVER, self.config.seed_base)
        results = {
            "protocol": protocol.to_dict(),
            "rows": [{**describe_pair(best[method], self.out), **summary(rows[method])} for method in rows],
            "search": read_json_lines(self.out / "search.jsonl"),
            "dataset": describe_dataset(self.source),
            "training": describe_training(configs, self.out),
            "baseline": {"real_half": reference[1]},
            "seconds": self.seconds,
            "plan": {"training": to_json(plan), "measuring": to_json(measuring)},
        }
        write_json(self.out / "results.json", results)
        row = next(row for row in results["rows"] if row["method"] == "autoguidance")
        measurement = {"row": row, "protocol": results["protocol"]}
        replace(best["autoguidance"], measurement=measurement).save(self.out / "pair.json")
        with self.stage("report"):
            write_report([self.out], self.out / "report.html")
        return results

    def _keep_images(self) -> None:
        images = self.out / "images"
        keep_real(self.source, images / "unguided.npz", images / "real.npz", self.config.seed)

    # The folder belongs to one data set and one request.

    def _begin(self) -> None:
        path = self.out / "run.json"
        content = {
            "data": self.config.data,
            "fingerprint": self.source.fingerprint,
            "minutes": self.config.minutes,
            "seed": self.config.seed,
            "resolution": self.config.resolution,
            "preset": self.config.preset,
            "device": self.config.device.type,
        }
        # Until there is a plan nothing was made, so a mistyped first call (an unknown preset) does not bind the folder.
        if path.exists() and (self.out / "plan.json").exists():
            before = read_json(path)
            if not isinstance(before, dict):
                raise UserError(f"{path} does not describe a run; choose another folder with --out")
            changed = [key for key, value in content.items() if before.get(key) != value]
            if changed:
                raise UserError(
                    f"{self.out} holds a run with other settings ({', '.join(changed)}); choose another folder with --out"
                )
        else:
            own = ("run.json", "seconds.json")
            others = [c.name for c in self.out.iterdir() if not c.name.startswith(".") and c.name not in own]
            if others:
                raise UserError(
                    f"{self.out} is not empty and holds no run ({others[0]}); choose another folder with --out"
                )
            write_json(path, content)
        times = self.out / "seconds.json"
        self.seconds = read_json(times) if times.exists() else {}

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        """Adds the stage's time to what earlier, interrupted calls spent on it."""
        start, before = time.monotonic(), self.seconds.get(name, 0.0)
        try:
            yield
        finally:
            self.seconds[name] = before + time.monotonic() - start
            write_json(self.out / "seconds.json", self.seconds)

    def _plan(self) -> TrainPlan:
        path = self.out / "plan.json"
        if not path.exists():
            with self._timed("plan"), self.stage("plan"):
                plan = plan_training(
                    self.source,
                    self.config.budget_seconds / 60,
                    device=self.config.device,
                    preset=self.config.preset,
                    seed=self.config.seed,
                )
            write_json(path, to_json(plan))
        content = read_json(path)
        return TrainPlan(**{**content, "evaluation_rates": tuple(content["evaluation_rates"])})

    def _plan_measuring(self, plan: TrainPlan, seconds_left: float) -> MeasurePlan:
        path = self.out / "plan-measuring.json"
        if not path.exists():
            measuring = plan_measuring(
                plan,
                self.source,
                SOLVER,
                seconds_left,
                read_json(self.out / "trained.json")["main"],
                num_processes=self.config.workers,
                on_gpu=self.config.on_gpu,
            )
            write_json(path, to_json(measuring))
        return MeasurePlan(**read_json(path))

    # Training

    @property
    def _features(self) -> str:
        return f"classifier:{self.out / 'classifier.safetensors'}" if self.source.num_classes > 1 else "pixels"

    @property
    def _classes(self) -> tuple[int, ...]:
        labels = self.source.class_idx
        return tuple(proportional_classes(labels)) if labels is not None and self.source.num_classes else ()

    def _train(self, configs: Mapping[str, TrainConfig]) -> None:
        done = self.out / "trained.json"
        if done.exists():
            return
        jobs = [Job(name="main", out=self.out / "main", config=configs["main"])]
        if self.source.num_classes > 1:
            jobs.append(Job(name="classifier", out=self.out / "classifier.safetensors"))
        jobs += [
            Job(name=name, out=self.out / name, config=config) for name, config in configs.items() if name != "main"
        ]
        with self._timed("train"), self.stage("train") as progress:
            seconds = run_jobs(
                jobs,
                self.config.data,
                resolution=self.config.resolution,
                device=self.config.device,
                num_processes=1 if self.config.on_gpu else min(self.config.num_processes, len(jobs)),
                seed=self.config.seed,
                progress=progress,
            )
        write_json(done, seconds)

    def _reference(self) -> tuple[Reference, float]:
        path = self.out / "reference.npz"
        network = open_network(
            self._features,
            channels=self.source.channels,
            resolution=self.source.resolution,
            device=self.config.device,
        )
        if not path.exists():
            with self._timed("reference"), self.stage("reference") as progress:
                source_statistics([network], self.source, progress=progress)[0].save(path)
        reference = Reference(network=network, statistics=Statistics.load(path))
        half_path = self.out / "real-half.json"
        if not half_path.exists():
            write_json(half_path, half_distance(reference, self.source, seed=self.config.seed))
        return reference, float(read_json(half_path))

    # Measuring

    def _measure(
        self, settings: MeasureSettings, plan: MeasurePlan
    ) -> tuple[dict[str, Pair], dict[str, list[Measured]]]:
        journal = {record_key(record): record for record in read_json_lines(self.out / "search.jsonl")}
        finals = {record_key(record): record for record in read_json_lines(self.out / "compare.jsonl")}
        with measurer(settings, self.config.workers) as pool:
            with self._timed("search"), self.stage("search") as progress:
                best = self._search(pool, plan, journal, progress)
            with self._timed("compare"), self.stage("compare") as progress:
                rows = self._compare(pool, plan, best, finals, progress)
        return best, rows

    def _search(
        self, pool: Measurer, plan: MeasurePlan, journal: dict[str, dict[str, Any]], progress: ProgressCallback | None
    ) -> dict[str, Pair]:
        main = guide_source(str(self.out / "main"))
        own = early_snapshots(str(self.out / "main"))
        trained = guide_source(str(self.out / "guide"))
        # From the worst to the best: by images seen; the smaller network is the worse one at equal count.
        guides = tuple(sorted([trained, *own], key=lambda g: (g.num_images, g.run != trained.run)))
        unconditional = guide_source(str(self.out / "unconditional")) if (self.out / "unconditional").exists() else None
        best: dict[str, Pair] = {}
        values: dict[str, dict[str, float]] = {}
        total, spent = sum(plan.search_budget.values()), 0
        least = math.inf
        for method, budget in plan.search_budget.items():
            space = SearchSpace(method, main, SOLVER, guides if method == "autoguidance" else (), unconditional)

            def measure(points: list[tuple[int, ...]], space: SearchSpace = space) -> list[float]:
                nonlocal spent, least
                tasks = [
                    Task(
                        pair=space.pair(point),
                        first_seed=self.config.seed_base + SEARCH_SEEDS,
                        num_images=plan.search_images,
                    )
                    for point in points
                ]

                def report(record: dict[str, Any]) -> None:
                    nonlocal spent, least
                    spent, least = spent + 1, min(least, record["fd"])
                    if progress is not None:
                        progress(min(spent, total), total, {"method": record["method"], "best": least})

                return [m.fd for m in self._measured(pool, tasks, self.out / "search.jsonl", journal, report)]

            known = {**values.get("unguided", {}), **(values.get("cfg", {}) if method == "cfg+interval" else {})}
            starts = space.starts(known, thorough=budget >= 14)[:budget]
            found = coordinate_search(
                space.sizes, measure, starts, budget, steps=space.steps(budget), diagonals=space.diagonals
            )
            best[method], values[method] = space.pair(found.best), space.values(found.best)
        return best

    def _compare(
        self,
        pool: Measurer,
        plan: MeasurePlan,
        best: Mapping[str, Pair],
        finals: dict[str, dict[str, Any]],
        progress: ProgressCallback | None,
    ) -> dict[str, list[Measured]]:
        make_folder(self.out / "images")
        tasks = [
            Task(
                pair=pair,
                first_seed=self.config.seed_base + repeat * plan.num_images,
                num_images=plan.num_images,
                keep=self.out / "images" / f"{method}.npz" if repeat == 0 else None,
                keep_images=IMAGES_KEPT,
            )
            for repeat in range(plan.repeats)
            for method, pair in best.items()
        ]
        done = 0

        def report(record: dict[str, Any]) -> None:
            nonlocal done
            done += 1
            if progress is not None:
                progress(done, len(tasks), {"method": record["method"], "distance": record["fd"]})

        measured = self._measured(pool, tasks, self.out / "compare.jsonl", finals, report)
        rows: dict[str, list[Measured]] = {method: [] for method in best}
        for index, result in enumerate(measured):
            rows[list(best)[index % len(best)]].append(result)
        return rows

    def _measured(
        self,
        pool: Measurer,
        tasks: Sequence[Task],
        path: Path,
        journal: dict[str, dict[str, Any]],
        report: Callable[[dict[str, Any]], None],
    ) -> list[Measured]:
        """Measure what the journal does not hold yet; each result is written down as it arrives."""
        records = [describe_task(task, self.out) for task in tasks]
        keys = [record_key(record) for record in records]
        for key in dict.fromkeys(keys):
            if key in journal:
                report(journal[key])
        fresh = [index for index, key in enumerate(keys) if key not in journal]

        def done(position: int, result: Measured) -> None:
            record = {**records[fresh[position]], **asdict(result)}
            append_json_line(path, record)
            journal[record_key(record)] = record
            report(record)

        pool.measure([tasks[index] for index in fresh], done)
        names = ("fd", "evaluations_main", "evaluations_guide", "seconds_per_image")
        return [Measured(**{name: journal[key][name] for name in names}) for key in keys]
