"""What lies beside post-hoc averages in their folder: the record of what was made, and the state of an unfinished pass.

The sums of a pass go now and then to `OUT/.posthoc`, one file per width, in a folder named after the number of snapshots in
them; `state.json` there, written last, says which folder counts. It also says of which snapshots (names, sizes, versions)
and widths the sums are, so that another command does not go on with them.
"""

import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from autoguidance.ema import WeightedSums, snapshot_name
from autoguidance.errors import UserError
from autoguidance.models import read_model_info
from autoguidance.storage import atomic_path, make_folder, read_json, write_json
from autoguidance.zoo.posthoc import PosthocPlan
from autoguidance.zoo.runs import LazyWeights, is_buffer

RECORD = "posthoc.json"
STATE = ".posthoc"
_FORMAT_VERSION = 1


class Record:
    """`posthoc.json`: what was made in this folder. A file counts as made if it is there and recorded with the same snapshots."""

    def __init__(self, out: Path, plan: PosthocPlan, identity: str) -> None:
        self._out, self._plan, self._digest = out, plan, identity
        self._path = out / RECORD
        content = read_json(self._path) if self._path.exists() else {"outputs": {}}
        if not isinstance(content, dict) or not isinstance(content.get("outputs"), dict):
            raise UserError(f"{self._path} is not a record of post-hoc averages; choose another --out")
        self._outputs: dict[str, Any] = content["outputs"]

    def path(self, std: float) -> Path:
        return self._out / snapshot_name(self._plan.num_images, std)

    def has(self, std: float) -> bool:
        entry = self._outputs.get(self.path(std).name)
        return isinstance(entry, dict) and entry.get("digest") == self._digest and self.path(std).exists()

    def check_free(self, std: float) -> None:
        """Raise UserError where a file is in the way that is not a reconstruction, which alone may be replaced."""
        path = self.path(std)
        if path.exists() and "posthoc" not in read_model_info(path).provenance:
            raise UserError(f"{path} is there and is not a post-hoc average; choose another --out")

    def add(self, std: float) -> None:
        plan, column = self._plan, self._plan.stds.index(std)
        made = plan.made[column]
        self._outputs[self.path(std).name] = {
            "ema_std": std,
            "num_images": plan.num_images,
            "profile_error": plan.errors[column],
            "made_width": made if np.isfinite(made) else None,
            "rounding_gain": plan.gains[column],
            "origin": plan.origin,
            "snapshots": [snapshot.name for snapshot in plan.snapshots],
            "digest": self._digest,
        }
        write_json(self._path, {"format_version": _FORMAT_VERSION, "outputs": dict(sorted(self._outputs.items()))})


class SavedSums:
    """The saved sums of a pass."""

    def __init__(self, folder: Path, identity: str) -> None:
        self.folder, self._digest = folder, identity
        self._path = folder / "state.json"

    def _read(self) -> dict[str, Any]:
        with suppress(UserError):  # a damaged state is none
            content = read_json(self._path) if self._path.exists() else {}
            if (content.get("format_version"), content.get("digest")) == (_FORMAT_VERSION, self._digest):
                return content
        return {}

    def widths(self) -> tuple[float, ...]:
        """The widths of which there are sums of these snapshots; () where there are none."""
        content = self._read()
        return tuple(content["widths"]) if content.get("done") else ()

    def left_by_another(self) -> bool:
        """Whether something lies here that is not of these snapshots."""
        return self.folder.exists() and not self._read()

    def begin(self, widths: Sequence[float]) -> None:
        """Start a pass over. What lies here of other snapshots goes, also what was fetched."""
        if self.left_by_another():
            shutil.rmtree(self.folder, ignore_errors=True)
        self._write(widths, 0, {})

    def save(self, sums: WeightedSums, widths: Sequence[float], done: int, sources: Mapping[str, Any]) -> None:
        """Put down the sums of the first `done` snapshots."""
        target = make_folder(self.folder / f"{done:05d}")
        for index, std in enumerate(widths):
            with atomic_path(target / f"{std!r}.safetensors") as temporary:
                try:
                    save_file(sums.output(index), str(temporary))
                except SafetensorError as error:
                    raise UserError(f"cannot write {target}: {error}; check the free disk space") from None
        self._write(widths, done, sources)

    def _write(self, widths: Sequence[float], done: int, sources: Mapping[str, Any]) -> None:
        content = {"format_version": _FORMAT_VERSION, "digest": self._digest, "widths": list(widths), "done": done}
        write_json(self._path, {**content, "sources": dict(sources)})
        for other in self.folder.iterdir():
            if other.is_dir() and other.name.isdigit() and int(other.name) != done:
                shutil.rmtree(other, ignore_errors=True)

    def load(self, widths: Sequence[float]) -> tuple[WeightedSums, int, dict[str, Any]]:
        """Sums, number of snapshots in them, and what is known of these; empty where not all these widths were saved, or not whole."""
        sums, content = WeightedSums(len(widths)), self._read()
        if not set(widths) <= set(self.widths()):
            return sums, 0, {}
        try:
            for index, std in enumerate(widths):
                weights = LazyWeights(self.folder / f"{content['done']:05d}" / f"{std!r}.safetensors")
                for name, value in weights.items():
                    if is_buffer(name) or not value.is_floating_point():
                        sums.copied[name] = value.clone()
                    else:
                        rows = sums.sums.setdefault(name, torch.zeros((len(widths), *value.shape)))
                        rows[index].copy_(value)
            return sums, content["done"], content["sources"]
        except (UserError, SafetensorError, OSError, KeyError, RuntimeError):
            return WeightedSums(len(widths)), 0, {}
