"""Plans for post-hoc averages: of which snapshots, how well, and in how much memory; before any weights are read.

The error of a width follows from the stored profiles alone, so it is known before gigabytes are fetched.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from safetensors import safe_open

from autoguidance.ema import (
    MAX_PROFILE_ERROR,
    combined_widths,
    groups_by_time,
    reconstruction_errors,
    solve_coefficients,
    usable_profiles,
)
from autoguidance.errors import UserError
from autoguidance.models import read_model_info
from autoguidance.storage import read_json
from autoguidance.zoo.download import is_url
from autoguidance.zoo.remote import RemoteSnapshot, list_remote
from autoguidance.zoo.runs import Snapshot, list_snapshots, snapshot_profile


@dataclass(frozen=True, kw_only=True, eq=False)
class PosthocPlan:
    """What averages are made, of what, and how well.

    Attributes:
        origin: folder or address of the snapshots.
        snapshots: those up to num_images, sorted by images, then width.
        num_images: end of the wanted profiles.
        stds: wanted widths.
        coefficients: X, [snapshots, widths]; for a width that is stored at num_images that snapshot alone.
        errors: relative error of each profile (`reconstruction_errors`).
        made: width that each combination really has (`combined_widths`); NaN where it extrapolates.
        gains: by how much independent rounding errors of the stored weights grow, sqrt(sum_i X_i^2).
        missing: names that a published run should have up to num_images, and this one has not.
    """

    origin: str
    snapshots: tuple[Snapshot | RemoteSnapshot, ...]
    num_images: int
    stds: tuple[float, ...]
    coefficients: Float[np.ndarray, "snapshots widths"]
    errors: tuple[float, ...]
    made: tuple[float, ...]
    gains: tuple[float, ...]
    missing: tuple[str, ...] = ()

    @property
    def unrepresentable(self) -> tuple[float, ...]:
        """Widths whose profile error is above `MAX_PROFILE_ERROR`."""
        return tuple(std for std, error in zip(self.stds, self.errors, strict=True) if error > MAX_PROFILE_ERROR)

    @property
    def size_bytes(self) -> int:
        """Bytes to read in one pass."""
        return sum(size_bytes(snapshot) for snapshot in self.snapshots)

    @property
    def network_bytes(self) -> int:
        """Memory of one network in float32; a bound where the files are not here."""
        last = self.snapshots[-1]
        if last.name.endswith(".pkl"):
            return 2 * size_bytes(last)  # stored in float16
        if isinstance(last, RemoteSnapshot):
            return last.size_bytes
        read_model_info(last.path)  # raises where the file is damaged
        with safe_open(str(last.path), "pt") as file:
            return 4 * sum(int(np.prod(file.get_slice(name).get_shape())) for name in file.keys())  # noqa: SIM118

    def groups(self, columns: Sequence[int]) -> list[slice]:
        """Slices of `snapshots`, one per time, that a pass over these widths reads; the last time always, for what is not averaged."""
        groups = groups_by_time([snapshot.profile for snapshot in self.snapshots])
        return [g for g in groups[:-1] if self.coefficients[g][:, list(columns)].any()] + groups[-1:]


def plan_averages(
    source: str | Path, stds: Sequence[float], num_images: int | None = None, *, names: Sequence[str] | None = None
) -> PosthocPlan:
    """Find the snapshots and say how well each width can be had; reads no weights.

    Args:
        source: run folder, folder of snapshots (ours or published), or the http(s) address of such a folder.
        stds: wanted relative widths.
        num_images: a stored time; None: the last.
        names: names of the files at an address whose server shows no list.

    Raises: UserError where there are no snapshots, none at num_images, or the address cannot be reached.
    """
    missing: list[str] = []
    if is_url(str(source)):
        origin = str(source).rstrip("/") + "/"
        found, missing = list_remote(origin, names)
    elif names is not None:
        raise UserError(f"{source} is a folder, whose files are known; a list of names is for an address")
    else:
        origin, found = str(source), list_snapshots(source)
    by_profile: dict[Any, Snapshot | RemoteSnapshot] = {snapshot.profile: snapshot for snapshot in found}
    if len(by_profile) < len(found):
        raise UserError(f"{origin} holds two snapshots of the same time and width; remove one")
    end = max(by_profile)[0] if num_images is None else num_images
    stored = usable_profiles(list(by_profile), end)
    wanted = [(end, std) for std in stds]
    X = solve_coefficients(stored, wanted)
    for column, profile in enumerate(wanted):
        if profile in by_profile:
            X[:, column] = [float(profile == other) for other in stored]
    return PosthocPlan(
        origin=origin,
        snapshots=tuple(by_profile[profile] for profile in stored),
        num_images=end,
        stds=tuple(stds),
        coefficients=X,
        errors=tuple(reconstruction_errors(stored, wanted, X).tolist()),
        made=tuple(combined_widths(stored, end, X).tolist()),
        gains=tuple(np.sqrt((X**2).sum(axis=0)).tolist()),
        missing=tuple(name for name in missing if (snapshot_profile(name) or (0, 0.0))[0] <= end),
    )


def size_bytes(snapshot: Snapshot | RemoteSnapshot) -> int:
    """Size of a snapshot's file."""
    return snapshot.size_bytes if isinstance(snapshot, RemoteSnapshot) else snapshot.path.stat().st_size


def digest(plan: PosthocPlan) -> str:
    """Identity of the plan's snapshots: as long as it stays, what was added to a sum need not be added again."""
    listed: dict[str, str] = {}
    first = plan.snapshots[0]
    if isinstance(first, Snapshot) and first.run is not None:
        listed = read_json(first.run / "manifest.json")["files"]
    rows = []
    for snapshot in plan.snapshots:
        if isinstance(snapshot, RemoteSnapshot):
            identity: object = snapshot.version
        elif snapshot.run is not None:
            identity = listed[snapshot.path.relative_to(snapshot.run).as_posix()]
        else:
            identity = snapshot.path.stat().st_mtime_ns
        rows.append([snapshot.name, size_bytes(snapshot), identity])
    return hashlib.sha256(json.dumps([plan.num_images, rows]).encode()).hexdigest()


def available_memory_bytes() -> int:
    """Memory that this process can take without swapping: what the system says is available, and the container's limit."""
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        available = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
        with suppress(OSError, ValueError):  # "max" where there is no limit
            group = Path("/sys/fs/cgroup")
            used = int((group / "memory.current").read_text(encoding="ascii"))
            stat = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
            limit = int((group / "memory.max").read_text(encoding="ascii"))
            available = min(available, limit - used + int(stat.get("inactive_file", 0)))
        return available
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def passes(plan: PosthocPlan, stds: Sequence[float], memory_bytes: int | None = None) -> list[tuple[float, ...]]:
    """The widths in groups of about equal size whose sums fit in memory together with one more network.

    Args:
        stds: of the plan's widths those that are to be made.
        memory_bytes: memory to use; None: 80 % of what is available.

    Raises: UserError where not even one width fits.
    """
    if not stds:
        return []
    memory = int(0.8 * available_memory_bytes()) if memory_bytes is None else memory_bytes
    most = memory // plan.network_bytes - 1
    if most < 1:
        raise UserError(
            f"one width needs {2 * plan.network_bytes / 1e9:.2g} GB of memory and {memory / 1e9:.2g} GB may be used; "
            "free some, or use a machine with more"
        )
    count = -(-len(stds) // most)
    return [tuple(part.tolist()) for part in np.array_split(np.array(stds), count)]
