"""One way to name a model, everywhere.

path.safetensors | RUN (last snapshot, the stored average nearest to 0.100) | RUN@0.070 (post-hoc EMA width) | RUN@0.070:8Mi (at 8
Mi images) | edm2-img512-s-2147483-0.130 (published; fetched on first use) | hf://owner/repo/file (on huggingface.co) |
shipped:NAME/main (comes with the package)
"""

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autoguidance.ema import MAX_EMA_STD
from autoguidance.errors import UserError
from autoguidance.interop.published_names import PUBLISHED_LICENCE
from autoguidance.models import (
    ModelInfo,
    Precond,
    assemble_model,
    load_model,
    read_model_info,
    read_weights,
    save_model,
)
from autoguidance.storage import sha256_file
from autoguidance.train.config import parse_count
from autoguidance.zoo.download import ProgressCallback
from autoguidance.zoo.imports import fetched_file, published_network
from autoguidance.zoo.published import LICENCE_NOTICE, PRESET_PREFIX, find_preset, is_published_name
from autoguidance.zoo.runs import average, list_snapshots
from autoguidance.zoo.shipped_pairs import SHIPPED_PREFIX, shipped_file, shipped_names

_NOTICE_GIVEN = "AUTOGUIDANCE_LICENCE_NOTICE_GIVEN"

_DEFAULT_STD = 0.1
_NAME = re.compile(r"(?P<run>.+?)(?:@(?P<std>[^@:]*))?(?::(?P<count>[^@:/\\]*))?")


@dataclass(frozen=True)
class ModelName:
    """A parsed model name.

    Attributes:
        path: a model file or a run folder.
        ema_std: wanted width; None: the stored one nearest to 0.100.
        num_images: wanted time; None: the last.
    """

    path: Path
    ema_std: float | None = None
    num_images: int | None = None

    def __str__(self) -> str:
        width = "" if self.ema_std is None else f"@{self.ema_std:.3f}"
        if self.ema_std is not None and float(width[1:]) != self.ema_std:
            width = f"@{self.ema_std!r}"  # more than three decimals: a name must come back as the same width
        return f"{self.path}{width}{'' if self.num_images is None else f':{self.num_images}'}"


def parse_model_name(name: str | Path) -> ModelName:
    """Read a model's name. Raises UserError where it follows none of the patterns."""
    text = str(name)
    if Path(text).exists() or text.endswith(".safetensors"):
        return ModelName(Path(text))
    if text.startswith(SHIPPED_PREFIX):
        return ModelName(shipped_file(text))
    match = _NAME.fullmatch(text)
    if match is None:
        raise UserError(f"{text!r} is not a model's name; write path.safetensors, RUN, RUN@0.070 or RUN@0.070:8Mi")
    std = None
    if match["std"] is not None:
        try:
            std = float(match["std"])
        except ValueError:
            std = -1.0
        if not 0 < std <= MAX_EMA_STD:
            raise UserError(
                f"{text}: EMA width {match['std']!r} is out of range; write a number in (0, {MAX_EMA_STD:.3f}], e.g. @0.070"
            )
    return ModelName(Path(match["run"]), std, None if match["count"] is None else parse_count(match["count"]))


def load(
    name: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    progress: ProgressCallback | None = None,
) -> Precond:
    """A ready Denoiser by its name.

    Args:
        name: `path.safetensors`, `RUN`, `RUN@0.070`, `RUN@0.070:8Mi`, a published network's name, hf://owner/repo/file, or
            `shipped:NAME/main`. A width that is not stored is reconstructed (post-hoc EMA); the number of images must be
            one that is stored.
        device: e.g. "cpu", "cuda", "cuda:1".
        dtype: dtype of the network's body; None: float16 on a GPU where the model allows it, else float32.

        progress: of a download, called with (bytes done, bytes in all, {}).

    Returns: D(x, sigma, labels=None) -> denoised, float32; see `Denoiser`.
    Raises: UserError in one line where nothing is there, the file is damaged, or the width or time cannot be had.
    """
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device {device} is not there; use cpu")
    if is_remote(name):
        name = local_file(str(name), progress)
    model = _load_local(name, device, dtype)
    if model.licence == PUBLISHED_LICENCE:
        _notice()
    return model


def is_remote(name: str | Path) -> bool:
    """Whether a model's name stands for something published, and nothing of that name lies here."""
    return is_published_name(str(name)) and not Path(name).exists()


def local_file(name: str, progress: ProgressCallback | None = None) -> Path:
    """The file of something published, fetched if it is not in the cache yet. Raises UserError where there is no such thing."""
    if name.startswith(PRESET_PREFIX):
        preset = find_preset(name)
        if len(preset.networks) > 1:
            raise UserError(f"{name} is a pair, not one model; give it to --pair, or name its main model {preset.main}")
        name = preset.main
    if name.startswith("hf://"):
        match = re.fullmatch(r"hf://([\w.-]+/[\w.-]+)/([\w./-]+\.safetensors)", name)
        if match is None or ".." in name:
            raise UserError(f"{name}: write hf://OWNER/REPOSITORY/FILE.safetensors")
        return fetched_file(f"https://huggingface.co/{match[1]}/resolve/main/{match[2]}", progress)
    return published_network(name, progress)


def _notice() -> None:
    """Say the published models' licence once per command, also where several processes load them."""
    if not os.environ.get(_NOTICE_GIVEN) and os.environ.get("RANK", "0") == "0":
        logging.getLogger("autoguidance").warning("licence: %s", LICENCE_NOTICE)
    os.environ[_NOTICE_GIVEN] = "1"


def _load_local(name: str | Path, device: torch.device | str, dtype: torch.dtype | None) -> Precond:
    parsed = parse_model_name(name)
    if parsed.path.suffix == ".pkl" and parsed.path.is_file():
        raise UserError(
            f"{name} is a pickle; turn it into a model file first: autoguidance import {name} --out NAME.safetensors"
        )
    if parsed.path.is_file() or parsed.path.suffix == ".safetensors":
        if parsed.ema_std is not None or parsed.num_images is not None:
            raise UserError(
                f"{name}: a model file has one width and time; name it without @ and :, or name its run folder"
            )
        return load_model(parsed.path, device=device, dtype=dtype)
    if not parsed.path.exists():
        if str(parsed.path) in shipped_names():
            raise UserError(
                f"{name} is a pair, not one model; give it to --pair, or name its main model {SHIPPED_PREFIX}{parsed.path}/main"
            )
        raise UserError(f"{parsed.path} does not exist; name a model file or a run folder")
    info, weights = read_named(parsed)
    return assemble_model(info, weights, device=device, dtype=dtype, source=str(parsed))


def write_model(name: str | Path, path: Path) -> None:
    """Write what a run folder's name stands for as one model file: a post-hoc average is then read once and not made again.

    Raises: UserError as `load` does, or where the file cannot be written.
    """
    info, weights = read_named(parse_model_name(name))
    save_model(path, weights, info, dtype=None)


def read_named(name: str | Path | ModelName) -> tuple[ModelInfo, Mapping[str, Tensor]]:
    """Metadata and weights, as stored, of what lies here under a name (a model file, or a width and time of a run folder).

    Raises: UserError as `load` does.
    """
    parsed = name if isinstance(name, ModelName) else parse_model_name(name)
    if parsed.path.is_file() or parsed.path.suffix == ".safetensors":
        return read_model_info(parsed.path), read_weights(parsed.path)
    num_images, std = _complete(parsed)
    return average(parsed.path, [std], num_images)[std]


def _complete(name: ModelName) -> tuple[int, float]:
    """Images and width of a run folder's name, with what the name leaves out."""
    snapshots = list_snapshots(name.path)
    end = snapshots[-1].num_images if name.num_images is None else name.num_images
    if name.ema_std is not None:
        return end, name.ema_std
    stored = [s.ema_std for s in snapshots if s.num_images == end] or [snapshots[-1].ema_std]
    return end, min(stored, key=lambda width: abs(width - _DEFAULT_STD))


def identify(name: str | Path) -> dict[str, Any]:
    """What a name stands for now: of a run folder images and EMA width, of a file its SHA-256. Another content gives another result.

    Raises: UserError as `load` does.
    """
    path = local_file(str(name), None) if is_remote(name) else parse_model_name(name).path
    if path.is_dir():
        num_images, std = _complete(parse_model_name(name))
        return {"num_images": num_images, "ema_std": std}
    return {"sha256": sha256_file(path)}
