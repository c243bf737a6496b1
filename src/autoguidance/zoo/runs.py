"""Snapshots of a folder, ours or published, and post-hoc averages made from them in memory.

A snapshot exists if the folder's manifest lists it. In a folder without a manifest (raw snapshots from elsewhere)
every file counts that is named `NNNNNNNNNNN-STD3.safetensors` (ours) or `PREFIX-KIMG7-STD3.pkl` (published EDM2).
"""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from autoguidance.ema import (
    MAX_PROFILE_ERROR,
    Profile,
    ReconstructionWarning,
    parse_snapshot_name,
    reconstruct,
    reconstruction_errors,
    usable_profiles,
)
from autoguidance.errors import UserError
from autoguidance.interop.published_names import parse_published_name
from autoguidance.models import ModelInfo, read_model_info, read_weights
from autoguidance.storage import Manifest

SNAPSHOTS = "snapshots"


@dataclass(frozen=True)
class Snapshot:
    """A stored average.

    Attributes:
        num_images: images seen.
        ema_std: relative EMA width.
        path: its file.
        run: the run folder whose manifest lists it; None: no manifest vouches for its content.
    """

    num_images: int
    ema_std: float
    path: Path
    run: Path | None = None

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def profile(self) -> Profile:
        return self.num_images, self.ema_std


def snapshot_profile(name: str) -> Profile | None:
    """(num_images, ema_std) of a snapshot's file name, ours or published; None where it is not one."""
    if name.endswith(".pkl"):
        return parse_published_name(name.removesuffix(".pkl"))
    return parse_snapshot_name(name)


def check_one_network(names: Iterable[str], place: str) -> None:
    """Raise UserError where published snapshots in one place have different prefixes: they are of different networks."""
    prefixes = sorted({name[: -len("-0000000-0.000.pkl")] for name in names if name.endswith(".pkl")})
    if len(prefixes) > 1:
        raise UserError(
            f"{place} holds snapshots of several networks ({', '.join(prefixes)}); give each its own folder"
        )


def list_snapshots(run: Path | str) -> list[Snapshot]:
    """All stored averages of a folder, sorted by images, then width.

    Where a published snapshot lies beside the model file imported from it, the model file counts.

    Raises: UserError where there is none, or they are of several networks.
    """
    run = Path(run)
    folder = run / SNAPSHOTS if (run / SNAPSHOTS).is_dir() else run
    manifest = Manifest(run)
    listed = manifest.path.exists()
    if listed:
        paths = [run / name for name in manifest.names()]
    elif folder.is_dir():
        paths = sorted(folder.iterdir())
    else:
        raise UserError(f"{run} does not exist; name a run folder or a model file")
    found: dict[Profile, Snapshot] = {}
    paths = [path for path in paths if path.parent == folder]
    for path in paths:
        profile = snapshot_profile(path.name)
        if profile is not None and (profile not in found or path.suffix == ".safetensors"):
            found[profile] = Snapshot(*profile, path, run if listed else None)
    if not found:
        raise UserError(
            f"{run} holds no snapshots (NNNNNNNNNNN-STD.safetensors or PREFIX-KIMG7-STD3.pkl); train it first or name "
            "another folder"
        )
    check_one_network((path.name for path in paths if snapshot_profile(path.name)), str(run))
    return [found[profile] for profile in sorted(found)]


def is_buffer(name: str) -> bool:
    """Whether a weight's name is a buffer of the EDM2 network (the fixed Fourier features), copied and never averaged."""
    return name.rpartition(".")[2] in ("freqs", "phases")


class LazyWeights(Mapping[str, Tensor]):
    """The tensors of a model file, each read when it is asked for.

    The file is opened anew for every tensor: what safetensors maps into memory then goes with the tensor, and reading a whole network
    costs one tensor at a time.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with safe_open(str(path), "pt") as file:
            self._names = tuple(file.keys())

    def __getitem__(self, name: str) -> Tensor:
        try:
            with safe_open(str(self._path), "pt") as file:
                return file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{self._path} cannot be read any more ({error}); restore it and run again") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def open_snapshot(path: Path) -> tuple[ModelInfo, Mapping[str, Tensor]]:
    """Metadata and weights of a snapshot, ours or published; the weights are read when they are asked for, as stored.

    Raises: UserError where the file is damaged or of another kind.
    """
    if path.suffix == ".pkl":
        from autoguidance.interop.edm2 import read_network

        return read_network(path)
    return read_model_info(path), LazyWeights(path)


def verify(snapshot: Snapshot) -> None:
    """Raise UserError where a snapshot's content is not what its run's manifest recorded."""
    if snapshot.run is not None:
        Manifest(snapshot.run).verify(snapshot.path.relative_to(snapshot.run).as_posix())


def _open(snapshot: Snapshot) -> Mapping[str, Tensor]:
    verify(snapshot)
    return open_snapshot(snapshot.path)[1]


def _read(snapshot: Snapshot) -> tuple[ModelInfo, dict[str, Tensor]]:
    verify(snapshot)
    info, weights = open_snapshot(snapshot.path)
    return info, read_weights(snapshot.path) if isinstance(weights, LazyWeights) else dict(weights)


def average(
    run: Path | str, stds: Sequence[float], num_images: int | None = None, progress=None
) -> dict[float, tuple[ModelInfo, dict[str, Tensor]]]:
    """Post-hoc averages of a run in memory, per width its metadata and weights (`write_averages` makes files, resumably).

    Warns (`ReconstructionWarning`) where the stored snapshots cannot represent a width.

    Args:
        run: run folder, or a folder of snapshots.
        stds: wanted relative widths. One that is stored at num_images is returned as stored.
        num_images: a stored time; None: the last.
        progress: called with (snapshots read, snapshots, {}).

    Raises: UserError where a snapshot is missing or damaged, or nothing is stored at num_images.
    """
    run = Path(run)
    snapshots = {snapshot.profile: snapshot for snapshot in list_snapshots(run)}
    end = max(snapshots)[0] if num_images is None else num_images
    results = {std: _read(snapshots[end, std]) for std in stds if (end, std) in snapshots}
    missing = [std for std in stds if std not in results]
    if missing:
        stored = usable_profiles(list(snapshots), end)
        errors = reconstruction_errors(stored, [(end, std) for std in missing])
        for std, error in zip(missing, errors, strict=True):
            if error > MAX_PROFILE_ERROR:
                warnings.warn(
                    f"{run}: its snapshots up to {end} images cannot represent EMA width {std:g} (profile error {error:.0%}, more than "
                    f"{MAX_PROFILE_ERROR:.0%}); expect another width",
                    ReconstructionWarning,
                    stacklevel=2,
                )
        sources = {profile: partial(_open, snapshot) for profile, snapshot in snapshots.items()}
        weights = reconstruct(sources, end, missing, is_buffer=is_buffer, progress=progress)
        last = next(snapshot for profile, snapshot in snapshots.items() if profile[0] == end)
        info = open_snapshot(last.path)[0]
        for std in missing:
            results[std] = (replace(info, ema_std=std), weights[std])
    return {std: results[std] for std in stds}
