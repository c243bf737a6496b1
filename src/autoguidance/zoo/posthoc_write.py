"""Post-hoc averages as files: many widths in one pass over the snapshots of a folder, here or on a web server.

Problem: 50 widths from 128 snapshots of a 1 GB network. What is kept in memory is one float32 sum per width
(`WeightedSums`) and the snapshots of one time; those of a web server are fetched for their turn and removed. Where the
sums of all widths do not fit in memory, the widths are done in several passes. A pass can be killed at any instruction;
a continued one adds the same numbers in the same order, so its results are the same to the bit.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autoguidance.ema import WeightedSums
from autoguidance.errors import UserError
from autoguidance.models import ModelInfo, save_model
from autoguidance.storage import make_folder
from autoguidance.zoo import remote
from autoguidance.zoo.download import fetch, is_url
from autoguidance.zoo.posthoc import PosthocPlan, digest, passes, size_bytes
from autoguidance.zoo.posthoc_state import STATE, Record, SavedSums
from autoguidance.zoo.remote import RemoteSnapshot
from autoguidance.zoo.runs import Snapshot, is_buffer, open_snapshot, verify

ProgressCallback = Callable[[int, int, dict[str, Any]], None]

SAVE_SECONDS = 60.0
"""Work that a killed pass may lose; where saving would take more than 5 % of the time, more, up to 20 times this."""


def write_averages(
    plan: PosthocPlan,
    out: Path | str,
    *,
    keep: Path | str | None = None,
    memory_bytes: int | None = None,
    progress: ProgressCallback | None = None,
    notify: Callable[[str], None] | None = None,
    save_seconds: float = SAVE_SECONDS,
) -> list[Path]:
    """Make the plan's averages as model files `NNNNNNNNNNN-STD3.safetensors`; the same call goes on where an earlier one was stopped.

    Floating-point weights are stored in the type that the snapshots have (float16 in published ones). Licence and provenance
    of the snapshots go into the files. `OUT/posthoc.json` says what was made, of what, with which errors.

    Args:
        plan: from `plan_averages`.
        out: folder for the files; not that of the snapshots.
        keep: folder in which fetched snapshots stay; None: they are removed when their turn is over.
        memory_bytes: memory for sums and one snapshot; None: 80 % of what is available. Less means more passes over the data.
        progress: called with (bytes done, bytes in all, {"snapshot": "3/128"}).
        notify: called with a line where unfinished work of an earlier call is continued or dropped.
        save_seconds: least time between two saved states.

    Returns: the files, in the order of plan.stds.
    Raises: UserError where a snapshot is damaged, missing or of another network, the network fails, or a file that is no reconstruction
        is in the way.
    """
    out = make_folder(out)
    if any(isinstance(s, Snapshot) and s.path.parent.resolve() == out.resolve() for s in plan.snapshots):
        raise UserError(f"{out} is the folder of the snapshots themselves; choose another one with --out")
    identity = digest(plan)
    record = Record(out, plan, identity)
    wanted = [std for std in plan.stds if not record.has(std)]
    for std in wanted:
        record.check_free(std)
    state = SavedSums(out / STATE, identity)
    batches = _batches(plan, wanted, state, memory_bytes, notify or (lambda line: None))
    meter = _Meter(progress, len(batches) * plan.size_bytes)
    for widths in batches:
        _Pass(plan, widths, state, meter, Path(keep) if keep is not None else None, save_seconds).run(record)
    shutil.rmtree(out / STATE, ignore_errors=True)
    return [record.path(std) for std in plan.stds]


def _batches(
    plan: PosthocPlan,
    wanted: Sequence[float],
    state: SavedSums,
    memory_bytes: int | None,
    notify: Callable[[str], None],
) -> list[tuple[float, ...]]:
    """The widths of each pass. Where sums were saved, the first pass goes on with them, unless that would cost another pass."""
    saved = [std for std in wanted if std in state.widths()]
    batches = passes(plan, wanted, memory_bytes)
    if saved and (len(saved) == len(wanted) or len(batches) > 1):
        notify(f"going on with the unfinished work in {state.folder}")
        rest = [std for std in wanted if std not in saved]
        return [tuple(saved), *passes(plan, rest, memory_bytes)]
    if wanted and (state.widths() or state.left_by_another()):
        what = "widths" if state.widths() else "snapshots"
        notify(f"the unfinished work in {state.folder} is of other {what}: starting over")
    return batches


class _Meter:
    """Bytes done over all passes, for the progress callback."""

    def __init__(self, callback: ProgressCallback | None, total: int) -> None:
        self._callback, self._total = callback, total
        self.done = 0
        self.figures: dict[str, Any] = {}

    def show(self, ahead: int = 0) -> None:
        if self._callback is not None:
            self._callback(min(self.done + ahead, self._total), self._total, self.figures)


class _Pass:
    """One pass over the snapshots for some of the widths."""

    def __init__(
        self,
        plan: PosthocPlan,
        widths: Sequence[float],
        state: SavedSums,
        meter: _Meter,
        keep: Path | None,
        save_seconds: float,
    ) -> None:
        self.plan, self.widths, self.state, self.meter = plan, tuple(widths), state, meter
        self.columns = [plan.stds.index(std) for std in widths]
        self.keep = keep
        self.fetched = keep if keep is not None else state.folder / "fetched"
        self.save_seconds = save_seconds

    def run(self, record: Record) -> None:
        plan, end_of_pass = self.plan, self.meter.done + self.plan.size_bytes
        sums, done, sources = self.state.load(self.widths)
        if not done:
            self.state.begin(self.widths)
        info: ModelInfo | None = None
        saved, saved_at, save_cost = done, time.monotonic(), 0.0
        self.meter.done += sum(size_bytes(snapshot) for snapshot in plan.snapshots[:done])
        for rows in plan.groups(self.columns):
            if rows.stop <= done:
                continue
            try:
                paths = [self._obtain(index, rows.start) for index in range(rows.start, rows.stop)]
            except BaseException:  # the network failed, or Ctrl-C while it was slow: the sums are whole here
                if done > saved:
                    self.state.save(sums, self.widths, done, sources)
                raise
            info = self._add(sums, rows, paths, sources)
            done = rows.stop
            self.meter.done = end_of_pass - plan.size_bytes + sum(size_bytes(s) for s in plan.snapshots[:done])
            self.meter.show()
            pause = self.save_seconds * min(max(1.0, 20 * save_cost / max(self.save_seconds, 1e-9)), 20.0)
            if done < len(plan.snapshots) and time.monotonic() - saved_at >= pause:
                start = time.monotonic()
                self.state.save(sums, self.widths, done, sources)
                saved, saved_at = done, time.monotonic()
                save_cost = saved_at - start
        assert info is not None  # the last time is read in every pass, and never saved as done
        self._write(sums, info, sources, record)
        self.meter.done = end_of_pass
        self.meter.show()

    def _obtain(self, index: int, first: int) -> Path:
        """The snapshot as a file here; `first` is the first one of its time, up to which the meter has counted."""
        snapshots = self.plan.snapshots
        snapshot = snapshots[index]
        self.meter.figures = {"snapshot": f"{index + 1}/{len(snapshots)}"}
        if isinstance(snapshot, Snapshot):
            verify(snapshot)
            return snapshot.path
        before = sum(size_bytes(other) for other in snapshots[first:index])
        return fetch(
            snapshot.url,
            self.fetched / snapshot.name,
            size=snapshot.size_bytes,
            progress=lambda done, total, figures: self.meter.show(before + done),
            pause=remote.PAUSE_SECONDS,
        )

    def _add(self, sums: WeightedSums, rows: slice, paths: Sequence[Path], sources: dict[str, Any]) -> ModelInfo:
        snapshots = self.plan.snapshots[rows]
        opened: list[tuple[ModelInfo, Mapping[str, Tensor]]] = []
        read = 0

        def count(num_bytes: int) -> None:
            nonlocal read
            read += num_bytes
            if isinstance(snapshots[0], Snapshot):  # fetching was counted for the others
                self.meter.show(read)

        try:
            for path in paths:
                opened.append(open_snapshot(path))
                _note(sources, opened[-1][0], path)
            sums.add(
                [weights for _, weights in opened],
                self.plan.coefficients[rows][:, self.columns],
                labels=[str(path) for path in paths],
                is_buffer=is_buffer,
                progress=count,
            )
        except UserError as error:
            if isinstance(snapshots[0], Snapshot):
                raise
            if self.keep is not None:
                raise UserError(f"{error}; remove what was fetched and run again") from None
            for path in paths:  # what is damaged must not be taken for good by the next try
                path.unlink(missing_ok=True)
            raise UserError(f"{error} (from {self.plan.origin}; the same command fetches it again)") from None
        info = opened[-1][0]
        opened.clear()  # the mappings hold the files' memory
        if self.keep is None:
            for path, snapshot in zip(paths, snapshots, strict=True):
                if isinstance(snapshot, RemoteSnapshot):
                    path.unlink(missing_ok=True)
        return info

    def _write(self, sums: WeightedSums, info: ModelInfo, sources: Mapping[str, Any], record: Record) -> None:
        plan = self.plan
        dtype = next(iter(sums.dtypes)) if len(sums.dtypes) == 1 else torch.float32
        names = json.dumps([[s.name, size_bytes(s)] for s in plan.snapshots])
        for index, (std, column) in enumerate(zip(self.widths, self.columns, strict=True)):
            posthoc = {
                "origin": plan.origin if is_url(plan.origin) else Path(plan.origin).resolve().name,
                "num_snapshots": len(plan.snapshots),
                "snapshots_sha256": hashlib.sha256(names.encode()).hexdigest(),  # of names and sizes
                "profile_error": plan.errors[column],
            }
            described = replace(
                info,
                ema_std=std,
                num_images=plan.num_images,
                licence=" AND ".join(sources["licences"]) or None,
                provenance={**info.provenance, "posthoc": posthoc},
            )
            path = record.path(std)
            for torn in path.parent.glob(f".{path.name}.*.tmp"):  # of a call that was killed while it wrote
                torn.unlink(missing_ok=True)
            save_model(path, sums.output(index), described, dtype)
            record.add(std)


def _note(sources: dict[str, Any], info: ModelInfo, path: Path) -> None:
    """Take down a snapshot's licence and configuration. Raises UserError where it cannot stand beside those before it."""
    if "posthoc" in info.provenance:
        raise UserError(f"{path} is itself a post-hoc average, not a snapshot of training; move it out of the folder")
    config = json.loads(json.dumps(dict(info.config)))
    if sources.setdefault("config", config) != config:
        raise UserError(f"{path} is of another network than the snapshots before it; give each its own folder")
    licences = set(sources.get("licences", ())) | ({info.licence} if info.licence else set())
    sources["licences"] = sorted(licences)
