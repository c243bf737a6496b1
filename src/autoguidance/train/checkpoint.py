"""Resume states: everything that the rest of a run depends on, in one safetensors file, written atomically.

A checkpoint holds tensors (weights, averages, Adam's moments) and, as JSON in the file's metadata, the counters in
`Progress`. It holds no random state, because the training stream has none (`train.order`). The latest two are kept;
the older one serves where the newer is damaged.
"""

import json
import logging
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from autoguidance.errors import UserError
from autoguidance.storage import Manifest, atomic_path

_FOLDER = "checkpoints"
_METADATA_KEY = "autoguidance_checkpoint"
_KEEP = 2

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Progress:
    """Where a run stands; everything but the tensors.

    Attributes:
        num_images: images seen, skipped steps included.
        averaged_images: images up to which the averages are.
        skipped: steps skipped because something was not finite, in the whole run.
        seconds: time spent in training, over all sessions.
        loss_sum, grad_norm_sum, num_terms: over the good steps since the last record of the log.
        logged_images, logged_seconds: where the last record was.
    """

    num_images: int = 0
    averaged_images: int = 0
    skipped: int = 0
    seconds: float = 0.0
    loss_sum: float = 0.0
    grad_norm_sum: float = 0.0
    num_terms: int = 0
    logged_images: int = 0
    logged_seconds: float = 0.0


def save_checkpoint(folder: Path, manifest: Manifest, tensors: dict[str, Tensor], progress: Progress) -> Path:
    """Write the state to `folder`/checkpoints, commit it, and remove all but the latest two."""
    path = folder / _FOLDER / f"{progress.num_images:011d}.safetensors"
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        try:
            save_file(on_cpu, str(temporary), metadata={_METADATA_KEY: json.dumps(asdict(progress), allow_nan=False)})
        except SafetensorError as error:
            raise UserError(f"cannot write {path}: {error}; check the free disk space") from None
    name = path.relative_to(folder).as_posix()
    old = [known for known in _committed(manifest) if known != name][: -(_KEEP - 1)]
    manifest.commit(path, remove=tuple(old))
    for known in old:
        with suppress(OSError):  # no longer in the manifest, so it no longer counts
            (folder / known).unlink(missing_ok=True)
    return path


def load_checkpoint(manifest: Manifest) -> tuple[dict[str, Tensor], Progress] | None:
    """The latest intact state, or None where the run has none yet.

    Raises UserError where there are checkpoints and all of them are damaged.
    """
    failure: UserError | None = None
    for name in reversed(_committed(manifest)):
        try:
            return _read(manifest.verify(name))
        except UserError as error:
            logger.warning("%s; going back to the checkpoint before it", error)
            failure = error
    if failure is not None:
        raise failure
    return None


def _committed(manifest: Manifest) -> list[str]:
    return [name for name in manifest.names() if name.startswith(f"{_FOLDER}/")]


def _read(path: Path) -> tuple[dict[str, Tensor], Progress]:
    try:
        with safe_open(str(path), "pt") as file:
            progress = Progress(**json.loads((file.metadata() or {})[_METADATA_KEY]))
            return {name: file.get_tensor(name) for name in file.keys()}, progress  # noqa: SIM118 (a handle is no dict)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is not a checkpoint of this version ({error}); restore it or start in another folder"
        ) from None
