"""Model files: weights plus everything needed to use and to trace them, in one safetensors file. Never a pickle.

The metadata entry `autoguidance` holds JSON: format version, architecture and its configuration, encoder, class
names, number of images seen, EMA width, licence, provenance (configuration hash, data fingerprint, code version).
Reading it runs no code.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from autoguidance.errors import UserError
from autoguidance.models.precond import Precond, build_model
from autoguidance.storage import atomic_path

FORMAT_VERSION = 1
METADATA_KEY = "autoguidance"
ARCHITECTURE = "edm2"


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What a model file says about itself.

    Attributes:
        config: keyword arguments of `Precond`, `UNet` and `Block`.
        encoder: configuration of the data encoder; None is plain RGB pixels.
        class_names: one name per class, or () where they are unknown or the model is unconditional.
        num_images: training images seen.
        ema_std: relative EMA width; None for raw weights.
        licence: licence of the weights; None where its owner named none.
        provenance: config hash, data fingerprint, code version.
    """

    config: Mapping[str, Any]
    architecture: str = ARCHITECTURE
    encoder: Mapping[str, Any] | None = None
    class_names: tuple[str, ...] = ()
    num_images: int = 0
    ema_std: float | None = None
    licence: str | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)


def save_model(
    path: Path | str, weights: Mapping[str, Tensor], info: ModelInfo, dtype: torch.dtype | None = torch.float32
) -> None:
    """Write a model file atomically; floating-point weights are stored as `dtype` (None: as they are)."""
    content = json.dumps({"format_version": FORMAT_VERSION, **asdict(info)}, allow_nan=False)
    tensors = {
        name: tensor.detach().to("cpu", dtype if dtype and tensor.is_floating_point() else tensor.dtype).contiguous()
        for name, tensor in weights.items()
    }
    with atomic_path(path) as temporary:
        try:
            save_file(tensors, str(temporary), metadata={METADATA_KEY: content})
        except SafetensorError as error:
            raise UserError(f"cannot write {path}: {error}; check the free disk space") from None


def _open(path: Path) -> Any:
    if path.is_dir() or not path.exists():
        raise UserError(
            f"{path} {'is a folder' if path.is_dir() else 'does not exist'}; name a model file (*.safetensors)"
        )
    try:
        return safe_open(str(path), "pt")
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is not a readable safetensors file ({error}); it may be cut off or damaged: restore it"
        ) from None


def read_model_info(path: Path | str) -> ModelInfo:
    """The metadata of a model file, without its weights. Raises UserError where it is not one of ours or is damaged."""
    path = Path(path)
    with _open(path) as file:
        text = (file.metadata() or {}).get(METADATA_KEY)
    if text is None:
        raise UserError(f"{path} is a safetensors file but not a model of autoguidance (no '{METADATA_KEY}' metadata)")
    try:
        content = json.loads(text)
        version = content.pop("format_version")
        content["class_names"] = tuple(content["class_names"])
        info = ModelInfo(**content)
        if not (info.encoder is None or isinstance(info.encoder, dict)):
            raise TypeError("the encoder is no object")
        named = isinstance(info.config, dict) and all(isinstance(name, str) for name in info.class_names)
    except (ValueError, TypeError, KeyError, AttributeError):
        raise UserError(f"{path}: its metadata is damaged or of another program; restore it from a copy") from None
    if version != FORMAT_VERSION:
        raise UserError(
            f"{path} has format version {version}, this program reads {FORMAT_VERSION}; update autoguidance"
        )
    if info.architecture != ARCHITECTURE or not named:
        raise UserError(f"{path} holds the architecture {info.architecture!r}; only {ARCHITECTURE!r} is known")
    return info


def read_weights(path: Path | str) -> dict[str, Tensor]:
    """All tensors of a model file, as stored, on the CPU."""
    path = Path(path)
    # Cloned: a tensor that safetensors maps from the file dies with a bus error when the file is rewritten in place.
    with _open(path) as file:
        return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dict)


def load_model(path: Path | str, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> Precond:
    """A ready denoiser from a model file: evaluation mode, gradients off, float32 weights.

    Args:
        path: a file written by `save_model`.
        device: where to put it.
        dtype: dtype of the network's body; None: float16 on a GPU where the configuration allows it, else float32.

    Raises: UserError where the file is damaged, or its weights do not fit its configuration.
    """
    path = Path(path)
    info = read_model_info(path)
    with _open(path) as file:
        # One tensor at a time, so that half-precision weights and their float32 copies are never both there as a whole.
        weights = {name: _widened(file.get_tensor(name), device) for name in file.keys()}  # noqa: SIM118 (not a dict)
    return assemble_model(info, weights, device=device, dtype=dtype, source=str(path))


def _widened(tensor: Tensor, device: torch.device | str) -> Tensor:
    """In float32 on the device; never the file's own memory, which dies with a bus error when the file is rewritten."""
    return tensor.to(device, torch.float32, copy=True)


def all_finite(tensor: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity; looks at a million elements at a time, so that little memory is needed."""
    return all(bool(torch.isfinite(part).all()) for part in tensor.reshape(-1).split(1 << 20))


def assemble_model(
    info: ModelInfo,
    weights: Mapping[str, Tensor],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    source: str = "the model",
) -> Precond:
    """A ready denoiser from metadata and weights; float32 weights on the device are taken as they are, others widened."""
    with torch.device("meta"):
        model = build_model(dict(info.config))
    wanted = {name: tensor.shape for name, tensor in model.state_dict().items()}
    given = {name: tensor.shape for name, tensor in weights.items()}
    if wanted != given:
        names = sorted(name for name in wanted.keys() | given.keys() if wanted.get(name) != given.get(name))
        raise UserError(
            f"{source}: weights do not fit the configuration ({len(names)} differ, first {names[0]}); restore the file"
        )
    for name, tensor in weights.items():
        if not all_finite(tensor):
            raise UserError(
                f"{source}: {name} holds values that are not finite; the file is damaged or its training diverged"
            )
    state = {name: tensor.to(device, torch.float32) for name, tensor in weights.items()}
    model.load_state_dict(state, assign=True)
    model.body_dtype = dtype
    model.encoder = dict(info.encoder) if info.encoder is not None else None
    model.class_names = info.class_names
    model.licence = info.licence
    return model.eval().requires_grad_(False)
