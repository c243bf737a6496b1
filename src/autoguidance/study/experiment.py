"""What every study shares: one data set, a few networks trained on it, one feature network, one comparison; resumable.

    OUT/study.json         what was asked for; another request needs another folder
    OUT/NAME/              one run folder per network
    OUT/reference.npz      features and statistics of the real set
    OUT/search.jsonl, compare.jsonl, images/     see `study.comparison`
    OUT/results.json, report.html

A study says which networks it needs and which rows it compares (a list of search spaces); every row gets the same budget of
images for its search, and is confirmed on fresh seeds, the same for all rows.

Seeds: the confirmation uses seed_base + 0 .. repeats * num_images - 1, the search seed_base + 5,000,000 and on.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from autoguidance.data.source import ImageSource
from autoguidance.errors import UserError
from autoguidance.evaluate import Reference, half_distance, open_network, read_statistics_file, source_references
from autoguidance.evaluate.references import NUM_REAL_KEPT
from autoguidance.report.page import write_report
from autoguidance.report.records import file_name
from autoguidance.sample import Heun, Solver, proportional_classes
from autoguidance.storage import read_json, read_json_lines, write_json
from autoguidance.study.comparison import Comparison, compare
from autoguidance.study.plan import EMA_STDS, most_training_images
from autoguidance.study.records import describe_dataset, describe_training, keep_real
from autoguidance.study.stages import Stages
from autoguidance.study.training import Job, is_finished, run_jobs
from autoguidance.train.config import TrainConfig
from autoguidance.train.presets import auto_preset, resolve, smaller
from autoguidance.tune import Contest, Entry, GuideSource, MeasureSettings, SearchPlan, SearchSpace, guide_source
from autoguidance.tune.policy import rung_counts
from autoguidance.tune.records import measured_protocol

SEARCH_SEEDS = 5_000_000
SEEDS_PER_RUN = 10_000_000
METRICS = ("kid", "prdc")


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """What the user asked for.

    Attributes:
        name: of the study.
        data: a data set's name.
        out: its folder.
        preset: size of the main network; None: by resolution. Guides are one size smaller.
        images: length of the main training; None: as `autoguidance run` would at most, or the preset's if that is less.
        batch_size, encoder, settings: of every training; None, "auto", (): the preset's.
        features: feature network; None: a classifier of the data (pixels where there are no labels).
        num_images, repeats: samples per repeat of the confirmation, and repeats; None: 10,000, or a half of the real set.
        search_images: samples of a full measurement while searching; None: a quarter of num_images.
        measurements: budget of each row's search, in full measurements.
        num_steps: of the sampler (Heun).
        sigma_min, sigma_max: its noise levels.
        dtype: of the networks' bodies, in training and while sampling; None: float32, but training in bfloat16 on a GPU
            and sampling there as `load` does.
        seed: fixes everything random.
        resolution: crop and resize images to this; None: as they are.
        device: torch device.
        processes: that measure.
        jobs: networks trained at once.
        trained: folder of another study; networks that it has finished, and this one would train alike, are copied.
    """

    name: str
    data: str
    out: Path
    preset: str | None = None
    images: int | None = None
    batch_size: int | None = None
    encoder: str = "auto"
    settings: tuple[str, ...] = ()
    features: str | None = None
    num_images: int | None = None
    repeats: int = 3
    search_images: int | None = None
    measurements: int = 12
    num_steps: int = 12
    sigma_min: float = Heun.sigma_min
    sigma_max: float = Heun.sigma_max
    dtype: torch.dtype | None = None
    seed: int = 0
    resolution: int | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    processes: int = 1
    jobs: int = 1
    trained: Path | None = None

    def __post_init__(self) -> None:
        for name in ("repeats", "measurements", "num_steps", "processes", "jobs"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)}: give at least 1")
        if self.seed < 0:
            raise UserError(f"--seed {self.seed}: give a whole number of at least 0")


class Experiment:
    """A data set, its networks and its measurements.

    Args:
        config: what was asked for.
        source: the images.
        stages: of the folder.

    Attributes:
        preset, guide_preset: sizes of the main network and of guides.
        num_images: length T of the main training.
        solver: of every row that names no other.
        labelled: whether the networks are given classes.
    """

    def __init__(
        self, config: StudyConfig, source: ImageSource, stages: Stages, *, unconditional: bool = False
    ) -> None:
        self.config, self.source, self.stages, self.out = config, source, stages, config.out
        on_gpu = config.device.type == "cuda"
        self.preset = config.preset or auto_preset(source.resolution, source.channels, on_gpu=on_gpu)
        self.guide_preset = smaller(self.preset)
        self.labelled = source.num_classes > 1 and not unconditional
        self.solver: Solver = Heun(num_steps=config.num_steps, sigma_min=config.sigma_min, sigma_max=config.sigma_max)
        first = self._resolve(self.preset, 1)
        usual = min(resolve(self.preset, source).num_images, most_training_images(source.num_images, first.batch_size))
        self.num_images = -(-(config.images or usual) // first.batch_size) * first.batch_size
        self._configs: dict[str, TrainConfig] = {}
        self._reference: tuple[Reference, float] | None = None
        self._begin()

    @property
    def seed_base(self) -> int:
        """First seed of the study's images."""
        return self.config.seed * SEEDS_PER_RUN

    def _begin(self) -> None:
        """The folder belongs to one data set and one request."""
        config = self.config
        content = {
            "study": config.name,
            "fingerprint": self.source.fingerprint,
            "preset": self.preset,
            "images": self.num_images,
            "training": [config.batch_size, config.encoder, list(config.settings)],
            "features": config.features,
            "measuring": [
                config.num_images,
                config.repeats,
                config.search_images,
                config.measurements,
                config.num_steps,
            ],
            "seed": config.seed,
            "device": config.device.type,
        }
        if self.solver != Heun(num_steps=config.num_steps):
            content["schedule"] = [config.sigma_min, config.sigma_max]
        if config.dtype is not None:
            content["dtype"] = _dtype_name(config.dtype)
        path = self.out / "study.json"
        if path.exists():
            before = read_json(path)
            before = before if isinstance(before, dict) else {}
            changed = sorted(k for k in {*content, *before} if before.get(k) != content.get(k))
            if changed:
                raise UserError(
                    f"{self.out} holds a study with other settings ({', '.join(changed)}); choose another folder with --out"
                )
            return
        others = [c.name for c in self.out.iterdir() if not c.name.startswith(".") and c.name != "seconds.json"]
        if others:
            raise UserError(
                f"{self.out} is not empty and holds no study ({others[0]}); choose another folder with --out"
            )
        write_json(path, content)

    # Training

    def _resolve(self, preset: str, images: int, **changes: Any) -> TrainConfig:
        dtype = self.config.dtype
        return resolve(
            preset,
            self.source,
            encoder=self.config.encoder,
            overrides=self.config.settings,
            num_images=images,
            batch_size=self.config.batch_size,
            dtype=_dtype_name(dtype) if dtype else "bfloat16" if self.config.device.type == "cuda" else None,
            ema_stds=EMA_STDS,
            **changes,
        )

    def training(self, preset: str, share: float, number: int, **changes: Any) -> TrainConfig:
        """A training of `share` of T; `number` gives it a seed of its own."""
        size = self._resolve(preset, 1).batch_size
        images = max(round(self.num_images * share / size), 16) * size
        if not self.labelled:
            changes["unconditional"] = True
        return self._resolve(preset, images, seed=16 * self.config.seed + number, **changes)

    def train(self, configs: Mapping[str, TrainConfig]) -> None:
        """Train these networks (those that are finished already return at once), and the classifier where it measures."""
        self._configs = dict(configs)
        done = self.out / "trained.json"
        if done.exists():
            return
        if self.config.trained is not None:
            self._copy_trained(self.config.trained, configs)
        jobs = [Job(name=name, out=self.out / name, config=config) for name, config in configs.items()]
        if self.features.startswith("classifier:"):
            jobs.insert(1, Job(name="classifier", out=self.out / "classifier.safetensors"))
        with self.stages("train") as progress:
            seconds = run_jobs(
                jobs,
                self.config.data,
                resolution=self.config.resolution,
                device=self.config.device,
                num_processes=min(self.config.jobs, len(jobs)),
                seed=self.config.seed,
                progress=progress,
            )
        write_json(done, seconds)

    def _copy_trained(self, folder: Path, configs: Mapping[str, TrainConfig]) -> None:
        """Copy the networks that training would only make once more: equal options and data, and finished."""
        for name, config in configs.items():
            here, there = self.out / name, folder / name
            if here.exists() or not is_finished(there, config, self.source.fingerprint):
                continue
            partial = here.with_name(f".{name}.copying")
            shutil.rmtree(partial, ignore_errors=True)  # of a call that was stopped
            try:
                shutil.copytree(there, partial, ignore=shutil.ignore_patterns(".*"))
                partial.rename(here)
            except (OSError, shutil.Error) as error:
                raise UserError(f"{there} cannot be copied to {here}: {error}") from error
        if not any((self.out / name).exists() for name in configs):
            raise UserError(
                f"--trained {folder}: none of {', '.join(configs)} is there, finished and made with this study's options "
                "and data; name the folder of a study that was (its study.json says how), or leave the option out"
            )

    def guide(self, name: str, num_images: int | None = None) -> GuideSource:
        """A trained network at its end, or at a stored time."""
        return guide_source(str(self.out / name), num_images)

    # Measuring

    @property
    def features(self) -> str:
        """The feature network as a worker can open it."""
        if self.config.features not in (None, "classifier"):
            return str(self.config.features)
        return f"classifier:{self.out / 'classifier.safetensors'}" if self.source.num_classes > 1 else "pixels"

    @property
    def confirm_images(self) -> int:
        """Samples per repeat of the confirmation."""
        return self.config.num_images or min(10_000, max(1000, self.source.num_images // 2))

    def reference(self) -> tuple[Reference, float]:
        """The real set, and the distance of a half of it to the whole."""
        if self._reference is not None:
            return self._reference
        path, half_path = self.out / "reference.npz", self.out / "real-half.json"
        network = open_network(
            self.features, channels=self.source.channels, resolution=self.source.resolution, device=self.config.device
        )
        if not path.exists():
            with self.stages("reference") as progress:
                found = source_references([network], self.source, keep=NUM_REAL_KEPT, progress=progress)[0]
                found.statistics.save(path, found.features)
        statistics, features = read_statistics_file(path, with_features=True)
        reference = Reference(network=network, statistics=statistics, features=features)
        if not half_path.exists():
            write_json(half_path, half_distance(reference, self.source, seed=self.config.seed))
        self._reference = reference, float(read_json(half_path))
        return self._reference

    def compare(self, spaces: Sequence[SearchSpace]) -> Comparison:
        """Search every row's best setting at equal budget, and confirm all on the same fresh seeds."""
        reference, _ = self.reference()
        full = self.config.search_images or max(256, self.confirm_images // 4)
        counts = rung_counts(full, reference.network.num_features)
        entries = [
            Entry(
                space=space,
                plan=SearchPlan(
                    counts=counts,
                    budget=counts[-1] * self.config.measurements,
                    first_seed=self.seed_base + SEARCH_SEEDS,
                    finalists=1,
                    confirm_repeats=self.config.repeats,
                    confirm_images=self.confirm_images,
                    confirm_seed=self.seed_base,
                    confirm_metrics=METRICS,
                ),
            )
            for space in spaces
        ]
        labels = self.source.class_idx
        settings = MeasureSettings(
            features=self.features,
            reference=self.out / "reference.npz",
            channels=self.source.channels,
            resolution=self.source.resolution,
            classes=tuple(proportional_classes(labels)) if labels is not None and self.labelled else (),
            device=str(self.config.device),
            dtype=self.config.dtype,
            partial=self.out / "partial",
            models=self.out / "models",
        )
        return compare(
            Contest(entries),
            settings,
            self.out,
            stages=self.stages,
            num_processes=self.config.processes,
            first_seed=self.seed_base,
        )

    def finish(self, found: Comparison, **more: Any) -> dict[str, Any]:
        """Write results.json, pair.json (the best autoguidance row of intact models) and the report; returns the results."""
        reference, half = self.reference()
        images, first = self.out / "images", next(iter(found.measured))
        keep_real(self.source, images / f"{file_name(first)}.npz", images / "real.npz", self.config.seed)
        protocol = measured_protocol(
            reference,
            num_images=self.confirm_images,
            repeats=self.config.repeats,
            first_seed=self.seed_base,
            solver=self.solver,
            class_sampling="proportional to the data, by seed" if self.labelled else "none",
            device=self.config.device.type,
            notes=[
                "each row's setting was chosen on other seeds than those reported",
                *([f"networks sampled in {_dtype_name(self.config.dtype)}"] if self.config.dtype else []),
            ],
        )
        rows = found.rows(self.out)
        results = {
            "study": self.config.name,
            "protocol": protocol.to_dict(),
            "rows": rows,
            "search": read_json_lines(self.out / "search.jsonl"),
            "sensitivity": found.sensitive,
            "dataset": describe_dataset(self.source),
            "training": describe_training(self._configs, self.out),
            "baseline": {"real_half": half},
            "seconds": self.stages.seconds,
            **more,
        }
        write_json(self.out / "results.json", results)
        pairs = {name: pair for name, pair in found.best.items() if not (pair.main_degraded or pair.guide_degraded)}
        guided = [
            row for row in rows if row["method"] in pairs and pairs[row["method"]].method.startswith("autoguidance")
        ]
        if guided:
            best = min(guided, key=lambda row: row["fd"])
            measurement = {"row": best, "protocol": results["protocol"]}
            replace(pairs[best["method"]], measurement=measurement).save(self.out / "pair.json")
        for scratch in ("partial", "models"):
            shutil.rmtree(self.out / scratch, ignore_errors=True)  # nothing goes on from there any more
        with self.stages("report"):
            write_report([self.out], self.out / "report.html")
        return results


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
