"""Snapshots of a run folder, and post-hoc averages made from them.

A snapshot exists if the folder's manifest lists it. In a folder without a manifest (raw snapshots from elsewhere)
every file named `NNNNNNNNNNN-STD3.safetensors` counts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from torch import Tensor

from autoguidance.ema import parse_snapshot_name, reconstruct
from autoguidance.errors import UserError
from autoguidance.models import ModelInfo, read_model_info, read_weights
from autoguidance.storage import Manifest

SNAPSHOTS = "snapshots"


@dataclass(frozen=True)
class Snapshot:
    """A stored average: images seen, relative EMA width, file."""

    num_images: int
    ema_std: float
    path: Path


def list_snapshots(run: Path | str) -> list[Snapshot]:
    """All stored averages of a run folder, sorted by images, then width. Raises UserError where there is none."""
    run = Path(run)
    folder = run / SNAPSHOTS if (run / SNAPSHOTS).is_dir() else run
    manifest = Manifest(run)
    if manifest.path.exists():
        paths = [run / name for name in manifest.names()]
    elif folder.is_dir():
        paths = sorted(folder.iterdir())
    else:
        raise UserError(f"{run} does not exist; name a run folder or a model file")
    found = []
    for path in paths:
        parsed = parse_snapshot_name(path.name)
        if parsed is not None and path.parent == folder:
            found.append(Snapshot(*parsed, path))
    if not found:
        raise UserError(
            f"{run} holds no snapshots (NNNNNNNNNNN-STD.safetensors); train it first or name another folder"
        )
    return sorted(found, key=lambda snapshot: (snapshot.num_images, snapshot.ema_std))


def is_buffer(name: str) -> bool:
    """Whether a weight's name is a buffer of the EDM2 network (the fixed Fourier features), copied and never averaged."""
    return name.rpartition(".")[2] in ("freqs", "phases")


def _read(run: Path, snapshot: Snapshot) -> dict[str, Tensor]:
    """A snapshot's weights. Raises UserError where its content is not what the manifest recorded."""
    manifest = Manifest(run)
    if manifest.path.exists():
        manifest.verify(snapshot.path.relative_to(run).as_posix())
    return read_weights(snapshot.path)


def average(
    run: Path | str, stds: Sequence[float], num_images: int | None = None, progress=None
) -> dict[float, tuple[ModelInfo, dict[str, Tensor]]]:
    """Post-hoc averages of a run, per width its metadata and weights.

    Args:
        run: run folder, or a folder of snapshots.
        stds: wanted relative widths. One that is stored at num_images is returned as stored.
        num_images: a stored time; None: the last.
        progress: called with (snapshots read, snapshots, {}).

    Raises: UserError where a snapshot is missing or damaged, or nothing is stored at num_images.
    """
    run = Path(run)
    snapshots = list_snapshots(run)
    end = snapshots[-1].num_images if num_images is None else num_images
    stored = {snapshot.ema_std: snapshot for snapshot in snapshots if snapshot.num_images == end}
    results = {}
    missing = []
    for std in stds:
        if std in stored:
            results[std] = (read_model_info(stored[std].path), _read(run, stored[std]))
        else:
            missing.append(std)
    if missing:
        sources = {(s.num_images, s.ema_std): partial(_read, run, s) for s in snapshots}
        weights = reconstruct(sources, end, missing, is_buffer=is_buffer, progress=progress)
        info = read_model_info(next(iter(stored.values())).path)
        for std in missing:
            results[std] = (replace(info, ema_std=std), weights[std])
    return {std: results[std] for std in stds}
