"""The run folder: what a training run leaves, and how it is found again in any state that a kill can leave.

    config.json                              the configuration, the data's fingerprint, network and encoder in full
    log.jsonl                                one record per `log_images` images
    snapshots/NNNNNNNNNNN-STD3.safetensors   both averages at the scheduled times
    checkpoints/NNNNNNNNNNN.safetensors      the latest two resume states
    tensorboard/                             the log once more, where TensorBoard is installed
    manifest.json                            SHA-256 of every committed file but the journals

Only the main process writes, and one run at a time: a lock, which the system releases when its holder dies, refuses a
second.
"""

import importlib.metadata
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autoguidance.ema.snapshots import snapshot_name
from autoguidance.errors import UserError
from autoguidance.models.files import ModelInfo, save_model
from autoguidance.storage import (
    Manifest,
    alone,
    append_json_line,
    make_folder,
    read_json,
    read_json_lines,
    write_json,
    write_text,
)
from autoguidance.train.checkpoint import Progress, load_checkpoint, save_checkpoint
from autoguidance.train.config import TrainConfig

_VERSION = 1
_JOURNAL = "log.jsonl"


def code_version() -> str:
    """Version of this package, for provenance."""
    try:
        return importlib.metadata.version("autoguidance")
    except importlib.metadata.PackageNotFoundError:  # run from a source tree
        return "unknown"


def describe_run(
    config: TrainConfig, *, network: dict[str, Any], encoder: dict[str, Any] | None, data: dict[str, Any]
) -> dict[str, Any]:
    """Content of config.json.

    Args:
        config: of the training.
        network: complete keyword arguments for `models.precond.build_model`.
        encoder: complete configuration of the data encoder.
        data: name, fingerprint, num_images, resolution, channels and class_names of the source.
    """
    return {
        "format_version": _VERSION,
        "code_version": code_version(),
        "torch_version": torch.__version__,
        "config_sha256": config.sha256(),
        "train": config.to_json(),
        "network": network,
        "encoder": encoder,
        "data": data,
    }


def read_run(path: Path | str) -> tuple[TrainConfig, dict[str, Any]]:
    """A run folder's configuration, and the whole content of its config.json.

    Raises UserError where the folder is not a training run or of another version.
    """
    file = Path(path) / "config.json"
    content = read_json(file)
    if not isinstance(content, dict) or "train" not in content or "data" not in content:
        raise UserError(f"{file} does not describe a training run; name a folder that `autoguidance train` made")
    if content.get("format_version") != _VERSION:
        raise UserError(
            f"{file} has format version {content.get('format_version')}, this program reads {_VERSION}; "
            "update autoguidance"
        )
    return TrainConfig.from_json(content["train"]), content


class RunFolder:
    """A run folder that this process writes. Make it by `open_run`, which holds the lock."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = Manifest(path)
        self.content: dict[str, Any] = {}

    def begin(self, config: TrainConfig, content: dict[str, Any]) -> None:
        """Write config.json, or check that the run that is here is the same one.

        Raises UserError where the run here has another configuration or other data, naming what differs.
        """
        if (self.path / "config.json").exists():
            self._check_same(config, content)
        elif self.manifest.names():
            raise UserError(
                f"{self.path} has a manifest.json but no config.json; restore it or choose another output folder"
            )
        self.content = content
        file = self.path / "config.json"
        if file.exists() and read_json(file) == content and "config.json" in self.manifest.names():
            return
        write_json(file, content)
        self.manifest.commit(file)

    def _check_same(self, config: TrainConfig, content: dict[str, Any]) -> None:
        here, known = read_run(self.path)
        remedy = "give the same options, or another --out"
        different = here.differences(config)
        if different:
            raise UserError(
                f"{self.path} holds a run with other options (there, now): {'; '.join(different)}; {remedy}"
            )
        if known["data"].get("fingerprint") != content["data"]["fingerprint"]:
            sets = [
                f"{d.get('name')} with fingerprint {str(d.get('fingerprint'))[:12]}"
                for d in (known["data"], content["data"])
            ]
            raise UserError(
                f"{self.path} holds a run on other data (there, now): {', '.join(sets)}; "
                "give the same data, or another --out"
            )
        for part in ("network", "encoder"):
            if known.get(part) != content[part]:
                raise UserError(
                    f"{self.path} holds a run with another {part}, made by another version; choose another --out"
                )

    def resume(self) -> tuple[dict[str, Tensor], Progress] | None:
        """The latest checkpoint, if any; the log is cut back to it, so that the rest of the run repeats no record."""
        state = load_checkpoint(self.manifest)
        reached = state[1].num_images if state else 0
        records = read_json_lines(self.path / _JOURNAL)
        kept = [record for record in records if record["images"] <= reached]
        if len(kept) < len(records):
            write_text(self.path / _JOURNAL, "".join(json.dumps(record) + "\n" for record in kept))
        return state

    def checkpoint(self, tensors: dict[str, Tensor], progress: Progress) -> None:
        """Write a resume state."""
        save_checkpoint(self.path, self.manifest, tensors, progress)

    def log(self, record: dict[str, Any]) -> None:
        """Append one record to log.jsonl."""
        append_json_line(self.path / _JOURNAL, record)

    def snapshot(self, averages: dict[float, dict[str, Tensor]], num_images: int, config: TrainConfig) -> list[Path]:
        """Write the averages as model files; returns their paths, in the order of the widths."""
        paths = []
        for ema_std, weights in averages.items():
            info = ModelInfo(
                config=self.content["network"],
                encoder=self.content["encoder"],
                class_names=() if config.unconditional else tuple(self.content["data"]["class_names"]),
                num_images=num_images,
                ema_std=ema_std,
                provenance={
                    "preset": config.preset,
                    "config_sha256": config.sha256(),
                    "data": self.content["data"]["name"],
                    "data_fingerprint": self.content["data"]["fingerprint"],
                    "code_version": code_version(),
                },
            )
            path = self.path / "snapshots" / snapshot_name(num_images, ema_std)
            save_model(path, weights, info, dtype=getattr(torch, config.snapshot_dtype))
            self.manifest.commit(path)
            paths.append(path)
        return paths


@contextmanager
def open_run(path: Path | str) -> Iterator[RunFolder]:
    """Create or open a run folder for writing, alone. Temporary files of a killed writer are removed.

    Raises UserError where it cannot be written, or another process is training there.
    """
    path = make_folder(path)
    with alone(path / ".lock", f"another process is training in {path}; wait for it, or choose another output folder"):
        for folder in (path, path / "snapshots", path / "checkpoints"):
            for leftover in folder.glob(".*.tmp"):
                with suppress(OSError):
                    leftover.unlink()
        yield RunFolder(path)
