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

import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from autoguidance.data.open import open_data
from autoguidance.data.source import ImageSource
from autoguidance.errors import UserError
from autoguidance.evaluate import Reference, Statistics, half_distance, open_network, source_statistics
from autoguidance.report.page import write_report
from autoguidance.sample import proportional_classes, solver_from_description
from autoguidance.storage import alone, make_folder, read_json, read_json_lines, write_json
from autoguidance.study.comparison import compare
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
from autoguidance.study.records import describe_dataset, describe_training, keep_real
from autoguidance.study.stages import Stage, Stages, silent
from autoguidance.study.training import Job, run_jobs
from autoguidance.train.config import TrainConfig
from autoguidance.tune import (
    Contest,
    Entry,
    MeasureSettings,
    SearchPlan,
    SearchSpace,
    early_snapshots,
    guide_source,
)
from autoguidance.tune.records import measured_protocol

SEARCH_SEEDS = 5_000_000
SEEDS_PER_RUN = 10_000_000


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


def run(config: RunConfig, stage: Stage = silent) -> dict[str, Any]:
    """Do the whole way, or what is left of it.

    Args:
        config: what to do and where.
        stage: given a stage's title, a context manager that yields a progress callback.

    Returns: the content of results.json.
    Raises: UserError where the data cannot be used, the folder holds another run or cannot be written.
    """
    make_folder(config.out)
    busy = f"another process is working in {config.out}; wait for it, or choose another folder with --out"
    with alone(config.out / ".lock", busy):
        with stage("check images") as progress:
            source = open_data(config.data, resolution=config.resolution, progress=progress)
        return _Run(config, source, stage).go()


class _Run:
    def __init__(self, config: RunConfig, source: ImageSource, stage: Stage) -> None:
        self.config, self.source = config, source
        self.out = config.out
        self.stages = Stages(config.out, stage)

    def go(self) -> dict[str, Any]:
        self._begin()
        if (self.out / "report.html").exists():  # written last: the run is complete
            return read_json(self.out / "results.json")
        plan = self._plan()
        configs = training_configs(plan, self.source, self.config.seed, on_gpu=self.config.on_gpu)
        self._train(configs)
        reference = self._reference()
        num_features = reference[0].network.num_features
        measuring = self._plan_measuring(
            plan, self.config.budget_seconds - sum(self.stages.seconds.values()), num_features
        )
        settings = MeasureSettings(
            features=self._features,
            reference=self.out / "reference.npz",
            channels=self.source.channels,
            resolution=self.source.resolution,
            classes=self._classes,
            device=str(self.config.device),
            partial=self.out / "partial",
        )
        found = compare(
            self._contest(measuring),
            settings,
            self.out,
            stages=self.stages,
            num_processes=self.config.workers,
            first_seed=self.config.seed_base,
        )
        self._keep_images()
        protocol = measured_protocol(
            reference[0],
            num_images=measuring.num_images,
            repeats=measuring.repeats,
            first_seed=self.config.seed_base,
            solver=solver_from_description(measuring.solver),
            class_sampling="proportional to the data, by seed" if self.source.num_classes else "none",
            device=self.config.device.type,
            notes=["each method's setting was chosen on other seeds than those reported"],
        )
        results = {
            "protocol": protocol.to_dict(),
            "rows": found.rows(self.out),
            "search": read_json_lines(self.out / "search.jsonl"),
            "sensitivity": found.sensitive,
            "dataset": describe_dataset(self.source),
            "training": describe_training(configs, self.out),
            "baseline": {"real_half": reference[1]},
            "seconds": self.stages.seconds,
            "plan": {"training": to_json(plan), "measuring": to_json(measuring)},
        }
        write_json(self.out / "results.json", results)
        row = next(row for row in results["rows"] if row["method"] == "autoguidance")
        measurement = {"row": row, "protocol": results["protocol"]}
        replace(found.best["autoguidance"], measurement=measurement).save(self.out / "pair.json")
        shutil.rmtree(self.out / "partial", ignore_errors=True)  # no measurement goes on from there any more
        with self.stages("report"):
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

    def _plan(self) -> TrainPlan:
        path = self.out / "plan.json"
        if not path.exists():
            with self.stages("plan"):
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

    def _plan_measuring(self, plan: TrainPlan, seconds_left: float, num_features: int) -> MeasurePlan:
        path = self.out / "plan-measuring.json"
        if not path.exists():
            measuring = plan_measuring(
                plan,
                self.source,
                seconds_left,
                read_json(self.out / "trained.json")["main"],
                num_features=num_features,
                num_processes=self.config.workers,
                on_gpu=self.config.on_gpu,
            )
            write_json(path, to_json(measuring))
        content = read_json(path)
        return MeasurePlan(**{**content, "search_counts": tuple(content["search_counts"])})

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
        with self.stages("train") as progress:
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
            with self.stages("reference") as progress:
                source_statistics([network], self.source, progress=progress)[0].save(path)
        reference = Reference(network=network, statistics=Statistics.load(path))
        half_path = self.out / "real-half.json"
        if not half_path.exists():
            write_json(half_path, half_distance(reference, self.source, seed=self.config.seed))
        return reference, float(read_json(half_path))

    # Measuring

    def _contest(self, plan: MeasurePlan) -> Contest:
        main = guide_source(str(self.out / "main"))
        guides = (guide_source(str(self.out / "guide")), *early_snapshots(str(self.out / "main")))
        unconditional = guide_source(str(self.out / "unconditional")) if (self.out / "unconditional").exists() else None
        entries, solver = [], solver_from_description(plan.solver)
        for method, budget in plan.search_budget.items():
            space = SearchSpace(method, main, solver, guides if method == "autoguidance" else (), unconditional)
            spend = SearchPlan(
                counts=plan.search_counts,
                budget=budget,
                first_seed=self.config.seed_base + SEARCH_SEEDS,
                finalists=1,
                confirm_repeats=plan.repeats,
                confirm_images=plan.num_images,
                confirm_seed=self.config.seed_base,
            )
            entries.append(Entry(space=space, plan=spend))
        return Contest(entries)
