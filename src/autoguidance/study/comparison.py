"""Several methods compared: each searched for its own best setting, then confirmed on fresh seeds; nothing measured twice.

    OUT/search.jsonl     every measurement of the searches, as it arrives
    OUT/compare.jsonl    every measurement of the confirmation
    OUT/images/*.npz     the first images of each method's confirmation, at equal seeds

A call that was killed goes on from the journals.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from autoguidance.report.records import file_name
from autoguidance.storage import append_json_line, make_folder, read_json_lines
from autoguidance.study.stages import ProgressCallback, Stages
from autoguidance.tune import (
    Contest,
    Measured,
    Measurer,
    MeasureSettings,
    MemoryBoard,
    State,
    Task,
    Unit,
    drive,
    measurer,
)
from autoguidance.tune.records import describe_pair, describe_task, sensitivity, summary
from autoguidance.zoo import Pair

IMAGES_KEPT = 64


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What came out, per method in the order of the contest.

    Attributes:
        best: the chosen setting.
        measured: its confirmation, by repeat.
        sensitive: how the distance changes around it, see `tune.records.sensitivity`.
    """

    best: Mapping[str, Pair]
    measured: Mapping[str, list[Measured]]
    sensitive: Mapping[str, Any]

    def rows(self, out: Path) -> list[dict[str, Any]]:
        """Rows of results.json, models named relative to `out`."""
        return [
            {**describe_pair(self.best[name], out), "method": name, **summary(self.measured[name])}
            for name in self.measured
            if self.measured[name]
        ]


def compare(
    contest: Contest, settings: MeasureSettings, out: Path, *, stages: Stages, num_processes: int, first_seed: int
) -> Comparison:
    """Search and confirm, or what is left of it.

    Args:
        contest: the methods.
        settings: of every measurement.
        out: folder of the journals.
        stages: shows "search" and "compare".
        num_processes: workers.
        first_seed: of the confirmation, whose first images are kept.

    Raises: UserError as `drive`.
    """
    arena = _Arena(contest, out, first_seed)
    with measurer(settings, num_processes) as pool:
        with stages("search") as progress:
            arena.drive(contest.next_search, pool, arena.search, progress)
        with stages("compare") as progress:
            state = arena.drive(contest.next_confirmation, pool, arena.compare, progress)
    best = {name: pair for name, (pair, _) in contest.best(state).items()}
    return Comparison(
        best=best,
        measured={name: [Measured(**details) for details in contest.confirmations(name, state)] for name in best},
        sensitive={name: sensitivity(contest, name, state) for name in best},
    )


class _Arena:
    """A board with its journals."""

    def __init__(self, contest: Contest, out: Path, first_seed: int) -> None:
        self.contest, self.out, self.first_seed = contest, out, first_seed
        self.search, self.compare = out / "search.jsonl", out / "compare.jsonl"
        self.board = MemoryBoard()
        for path in (self.search, self.compare):
            for record in read_json_lines(path):
                _replay(self.board, record)
        make_folder(out / "images")

    def task(self, unit: Unit) -> Task:
        found = self.contest.task(unit)
        if unit.first_seed != self.first_seed:
            return found
        name = str(unit.values["method"])
        images = self.out / "images" / f"{file_name(name)}.npz"
        return replace(found, keep=images, keep_images=IMAGES_KEPT)

    def drive(
        self,
        ask: Callable[[State], Unit | None],
        pool: Measurer,
        journal: Path,
        progress: ProgressCallback | None,
    ) -> State:
        """Measure what is asked for; each result is written down as it arrives."""

        def finished(unit: Unit, _: float, details: Mapping[str, Any]) -> None:
            described = {**describe_task(self.task(unit), self.out), "method": unit.values["method"]}
            append_json_line(journal, {**described, "setting": unit.values, **details})

        def seen(state: State) -> None:
            if progress is not None:
                done, total = self.contest.progress(state)
                progress(done, total, self.contest.figures(state))

        return drive(self.board, ask, pool, self.task, finished=finished, seen=seen)


def _replay(board: MemoryBoard, record: Mapping[str, Any]) -> None:
    """Put a measurement of an earlier, interrupted call on the board."""
    unit = Unit.of(record["setting"], first_seed=record["first_seed"], num_images=record["num_images"])
    claim = board.claim(unit)
    if claim is not None:
        details = {item.name: record[item.name] for item in fields(Measured) if item.name in record}
        claim.finish(record["fd"], details)
