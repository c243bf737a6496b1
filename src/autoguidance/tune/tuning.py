"""The search of `autoguidance tune`: from two training runs and a real set to pair.json.

Any number of these, on one or several machines, may work on one search: they share a storage, and each keeps its own
workers busy. Whoever finds everything finished writes the result. A killed search goes on with the same command: the
storage holds every finished measurement, and what a dead worker had claimed is claimed again.

    STEM.tune/    beside the output file STEM.json
        trials.jsonl      the shared storage, unless another is named
        reference.npz     statistics of the real set, for the workers
        partial/          statistics of measurements that larger ones go on from
        models/           post-hoc averages, the last 40
        results.json      protocol, rows, every measurement, sensitivity; `autoguidance report` reads it
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from autoguidance.errors import UserError
from autoguidance.evaluate import Reference
from autoguidance.sample import Solver
from autoguidance.storage import make_folder, write_json
from autoguidance.tune.board import Axes, State, open_board
from autoguidance.tune.contest import Contest, Entry
from autoguidance.tune.drive import drive
from autoguidance.tune.measuring import Measured, MeasureSettings, measurer
from autoguidance.tune.policy import FEWEST_IMAGES, SearchPlan, rung_counts
from autoguidance.tune.records import (
    describe_pair,
    measured_protocol,
    search_records,
    sensitivity,
    summary,
)
from autoguidance.tune.space import GuideSource, SearchSpace, early_snapshots, guide_source
from autoguidance.zoo import Pair, is_remote, list_snapshots, parse_model_name
from autoguidance.zoo.identity import content_key

ProgressCallback = Callable[[int, int, dict[str, Any]], None]
Stage = Callable[[str], AbstractContextManager[ProgressCallback | None]]

SEARCH_SEEDS = 5_000_000
FULL_IMAGES_PER_FEATURE = 10
BUDGET_MEASUREMENTS = 30
_UNGUIDED_SHARE = 1 / 6


def full_count(num_features: int) -> int:
    """Images of a full measurement where the user names none: ten per feature, 1,024 to 50,000, in whole micro-batches."""
    return min(50_000, max(1024, -(-FULL_IMAGES_PER_FEATURE * num_features // 64) * 64))


@dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """What to search and how.

    Attributes:
        main: main model: a run folder (its EMA width is searched), RUN@STD, or a model file.
        guides: guide runs, each at its stored times (RUN:COUNT: at that one), or model files.
        early: also early snapshots of the main run.
        unconditional: for classifier-free guidance; None: not searched.
        interval: search the guidance interval too.
        out: pair.json to write.
        features: name of the feature network, as a worker can open it.
        reference: the real set.
        classes, class_sampling: classes by seed, and their description; (): drawn at random by seed.
        solver: of every measurement.
        num_images: of a full measurement; None: see `full_count`.
        budget: images of the search for each guided method; None: 30 full measurements.
        finalists, repeats: settings to confirm, and on how many disjoint sets of num_images.
        storage: as `open_board`; None: trials.jsonl in the work folder.
        seed: of the first image; the search's come 5,000,000 later.
        device, dtype, processes: who measures.
        lease_seconds: see `open_board`.
    """

    main: str
    guides: tuple[str, ...] = ()
    early: bool = True
    unconditional: str | None = None
    interval: bool = False
    out: Path
    features: str
    reference: Reference
    classes: tuple[int, ...] = ()
    class_sampling: str = "random"
    solver: Solver
    num_images: int | None = None
    budget: int | None = None
    finalists: int = 3
    repeats: int = 3
    storage: str | None = None
    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype | None = None
    processes: int = 1
    lease_seconds: float = 60.0

    def __post_init__(self) -> None:
        if self.num_images is not None and self.num_images < FEWEST_IMAGES:
            raise UserError(f"--num {self.num_images}: give at least {FEWEST_IMAGES} images")
        if self.finalists < 1 or self.repeats < 1 or self.processes < 1 or self.seed < 0:
            raise UserError("--finalists, --repeats and --processes: give at least 1; --first-seed: at least 0")
        if self.out.suffix != ".json":
            raise UserError(f"--out {self.out}: give a file name that ends in .json")

    @property
    def work(self) -> Path:
        """The folder for everything but the pair."""
        return self.out.with_suffix(".tune")

    @property
    def full(self) -> int:
        """Images of a full measurement."""
        return self.num_images or full_count(self.reference.network.num_features)


def guide_sources(config: TuneConfig, main: GuideSource) -> tuple[GuideSource, ...]:
    """Everything that can be the guide. Raises UserError where there is nothing."""
    found: list[GuideSource] = []
    for name in config.guides:
        if is_remote(name) or not parse_model_name(name).path.is_dir() or parse_model_name(name).num_images is not None:
            found.append(guide_source(name))
        else:
            run = str(parse_model_name(name).path)
            times = [source for source in early_snapshots(run, highest=1.0) if source.run == run]
            found += times if len(times) > 1 else [guide_source(name)]
    if config.early and not main.fixed and len({s.num_images for s in list_snapshots(main.run)}) > 1:
        found += [source for source in early_snapshots(main.run) if source.num_images < main.num_images]
    if not found:
        raise UserError("there is no guide: name one with --guide, or a main run that has early snapshots")
    return tuple(dict.fromkeys(found))


def entries(config: TuneConfig) -> list[Entry]:
    """The methods to search, in order: unguided first, as what guidance must beat."""
    main = guide_source(config.main)
    unconditional = None if config.unconditional is None else guide_source(config.unconditional)
    counts = rung_counts(config.full, config.reference.network.num_features)
    budget = config.budget if config.budget is not None else BUDGET_MEASUREMENTS * config.full
    if budget < config.full:
        raise UserError(
            f"--budget {budget} is less than one measurement on {config.full} images; raise it or lower --num"
        )

    def plan(share: float, finalists: int) -> SearchPlan:
        return SearchPlan(
            counts=counts,
            budget=max(config.full, int(budget * share)),
            first_seed=config.seed + SEARCH_SEEDS,
            finalists=finalists,
            confirm_repeats=config.repeats,
            confirm_images=config.full,
            confirm_seed=config.seed,
        )

    found = [Entry(space=SearchSpace("unguided", main, config.solver), plan=plan(_UNGUIDED_SHARE, 1))]
    if unconditional is not None:
        spaces = [SearchSpace(m, main, config.solver, (), unconditional) for m in ("cfg", "cfg+interval")]
        found += [Entry(space=space, plan=plan(1.0, config.finalists)) for space in spaces]
    method = "autoguidance+interval" if config.interval else "autoguidance"
    space = SearchSpace(method, main, config.solver, guide_sources(config, main))
    return [*found, Entry(space=space, plan=plan(1.0, config.finalists))]


def _axes(contest: Contest) -> Axes:
    """Ranges of all methods' axes together."""
    found: dict[str, Any] = {"method": contest.methods}
    for entry in contest.entries:
        for axis in entry.space.grid.axes:
            if isinstance(axis.values[0], str):
                found[axis.name] = tuple(dict.fromkeys((*found.get(axis.name, ()), *axis.values)))
            else:
                values = (*found.get(axis.name, ()), *axis.values)
                found[axis.name] = (min(values), max(values))
    return found


def _description(config: TuneConfig, contest: Contest) -> dict[str, Any]:
    """All that a measurement depends on: two commands that share a storage must agree on it."""
    entry = contest.entries[-1]
    models = {"main": content_key(config.main), "guides": {g.label: _identity(g) for g in entry.space.guides}}
    if config.unconditional is not None:
        models["unconditional"] = content_key(config.unconditional)
    return {
        "models": models,
        "features_sha256": config.reference.network.sha256,
        "reference_sha256": config.reference.statistics.record.get("source_sha256"),
        "num_real": config.reference.statistics.num,
        "classes": config.class_sampling,
        "solver": config.solver.describe(),
        "methods": list(contest.methods),
        "counts": list(entry.plan.counts),
        "budget": entry.plan.budget,
        "seed": config.seed,
        "finalists": config.finalists,
        "repeats": config.repeats,
        "device": config.device.type,
        "dtype": str(config.dtype),
    }


def _identity(guide: GuideSource) -> dict[str, Any]:
    return content_key(guide.run if guide.fixed else f"{guide.run}@{guide.stds[0]:.3f}:{guide.num_images}")


def tune(config: TuneConfig, stage: Stage | None = None) -> dict[str, Any]:
    """Search, confirm, and write pair.json; or what is left of it.

    Args:
        config: what to search and where.
        stage: given a stage's title, a context manager that yields a progress callback; None: silent.

    Returns: the content of results.json.
    Raises: UserError where models do not fit, the storage holds another search, or a measurement cannot be made.
    """
    stage = stage or (lambda title: nullcontext())
    contest = Contest(entries(config))
    make_folder(config.work)
    statistics = config.work / "reference.npz"
    config.reference.statistics.save(statistics)
    record = config.reference.statistics.record
    settings = MeasureSettings(
        features=config.features,
        reference=statistics,
        channels=int(record.get("channels", 1)),
        resolution=int(record.get("resolution", 1)),
        classes=config.classes,
        device=str(config.device),
        dtype=config.dtype,
        partial=config.work / "partial",
        models=config.work / "models",
    )
    board = open_board(
        config.storage if config.storage is not None else config.work / "trials.jsonl",
        config.out.stem,
        description=_description(config, contest),
        axes=_axes(contest),
        lease_seconds=config.lease_seconds,
    )
    try:
        with measurer(settings, config.processes) as pool, stage("tune") as progress:

            def seen(state: State) -> None:
                if progress is not None:
                    done, total = contest.progress(state)
                    progress(done, total, contest.figures(state))

            state = drive(board, contest.next, pool, contest.task, seen=seen)
        results = _results(config, contest, state)
    finally:
        board.close()
    write_json(config.work / "results.json", results)
    method = contest.methods[-1]
    row = next((row for row in results["rows"] if row["method"] == method), None)
    if row is None:
        raise UserError(f"no setting of {method} could be measured; see the reasons in {config.work / 'results.json'}")
    pair: Pair = contest.best(state)[method][0]
    chosen = replace(pair, measurement={"row": row, "protocol": results["protocol"]})
    for path in (config.out, config.work / "pair.json"):  # beside the results too, so that the report can name it
        chosen.save(path)
    return results


def _results(config: TuneConfig, contest: Contest, state: State) -> dict[str, Any]:
    protocol = measured_protocol(
        config.reference,
        num_images=config.full,
        repeats=config.repeats,
        first_seed=config.seed,
        solver=config.solver,
        class_sampling=config.class_sampling,
        device=config.device.type,
        notes=[
            "searched on other seeds than those reported",
            f"of each guided method the best of {config.finalists} settings on the reported seeds is shown, "
            "which favours it a little",
        ],
    )
    rows, sensitive = [], {}
    for method, (pair, best) in contest.best(state).items():
        measured = [_measured(details) for details in contest.confirmations(method, state)]
        if measured:
            rows.append({**describe_pair(pair, config.out.parent), **summary(measured), "fd_search": best.measured})
            sensitive[method] = sensitivity(contest, method, state)
    return {
        "protocol": protocol.to_dict(),
        "rows": rows,
        "search": search_records(contest, state, config.out.parent),
        "sensitivity": sensitive,
        "num_images_sampled": sum(int(item.details.get("new_images", 0)) for item in state.finished),
        "failed": [
            {"setting": unit.values, "num_images": unit.num_images, "times": times}
            for unit, times in state.failed.items()
        ],
        "dataset": _dataset(config.reference.statistics.record),
    }


def _measured(details: Mapping[str, Any]) -> Measured:
    names = Measured.__dataclass_fields__
    return Measured(**{name: value for name, value in details.items() if name in names})


def _dataset(record: Mapping[str, Any]) -> dict[str, Any]:
    names = {"source": "name", "resolution": "resolution", "channels": "channels", "source_sha256": "fingerprint"}
    return {new: record[old] for old, new in names.items() if old in record}
