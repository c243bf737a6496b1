"""One way to name a model, everywhere.

path.safetensors | RUN (last snapshot, widest stored average) | RUN@0.070 (post-hoc EMA width) | RUN@0.070:8Mi (at 8
Mi images)
"""

import re
from dataclasses import dataclass
from pathlib import Path

import torch

from autoguidance.ema import MAX_EMA_STD
from autoguidance.errors import UserError
from autoguidance.models import Precond, assemble_model, load_model
from autoguidance.train.config import parse_count
from autoguidance.zoo.runs import average, list_snapshots

_NAME = re.compile(r"(?P<run>.+?)(?:@(?P<std>[^@:]*))?(?::(?P<count>[^@:/\\]*))?")


@dataclass(frozen=True)
class ModelName:
    """A parsed model name.

    Attributes:
        path: a model file or a run folder.
        ema_std: wanted width; None: the widest that is stored.
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
    if text.startswith(("hf://", "preset:", "edm2-")) and not Path(text).exists():
        raise UserError(
            f"{text}: published models cannot be fetched by name in this version; name a model file or a run folder"
        )
    if Path(text).exists() or text.endswith(".safetensors"):
        return ModelName(Path(text))
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


def load(name: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> Precond:
    """A ready Denoiser by its name.

    Args:
        name: `path.safetensors`, `RUN`, `RUN@0.070` or `RUN@0.070:8Mi`. A width that is not stored is reconstructed (post-hoc EMA); the
            number of images must be one that is stored.
        device: e.g. "cpu", "cuda", "cuda:1".
        dtype: dtype of the network's body; None: float16 on a GPU where the model allows it, else float32.

    Returns: D(x, sigma, labels=None) -> denoised, float32; see `Denoiser`.
    Raises: UserError in one line where nothing is there, the file is damaged, or the width or time cannot be had.
    """
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device {device} is not there; use cpu")
    parsed = parse_model_name(name)
    if parsed.path.is_file() or parsed.path.suffix == ".safetensors":
        if parsed.ema_std is not None or parsed.num_images is not None:
            raise UserError(
                f"{name}: a model file has one width and time; name it without @ and :, or name its run folder"
            )
        return load_model(parsed.path, device=device, dtype=dtype)
    if not parsed.path.exists():
        raise UserError(f"{parsed.path} does not exist; name a model file or a run folder")
    std = parsed.ema_std
    if std is None:
        snapshots = list_snapshots(parsed.path)
        end = snapshots[-1].num_images if parsed.num_images is None else parsed.num_images
        std = max((s.ema_std for s in snapshots if s.num_images == end), default=snapshots[-1].ema_std)
    info, weights = average(parsed.path, [std], parsed.num_images)[std]
    return assemble_model(info, weights, device=device, dtype=dtype, source=str(parsed))
