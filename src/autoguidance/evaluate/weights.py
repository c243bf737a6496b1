"""Weights that others trained, read as data: nothing that their file says is run, and what is used is what was hashed.

A `.pth` file is a pickle. `torch.load(weights_only=True)` refuses code but not lies: members that deflate to gigabytes,
tensors with stride 0 that claim more elements than their bytes, sparse tensors with indices outside, quantized or meta
tensors. So a file is read once into memory, its archive may hold stored members only, no larger together than the
file, and each tensor must be a plain dense one of the name, shape and dtype that the network has, finite; anything
else is refused by name. Not mapped: a process that maps a file dies of a bus error if the file is cut off later, and
the bytes that were hashed would not be sure to be the ones used.

    sha256 = SHA-256(description as JSON, then for each tensor in order of its name: name, dtype, shape, bytes)

names weights and preprocessing, whatever file they came in: a `.pth` and the same weights as `.safetensors` are the
same network.
"""

import hashlib
import io
import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from autoguidance.errors import UserError

_MAX_BYTES = 8 << 30
_MAX_MEMBERS = 10_000
_HASHED_NAME = re.compile(r"-([0-9a-f]{8,64})\.[A-Za-z]+$")


def read_whole(path: Path, what: str) -> bytes:
    """The bytes of a file that the user named. Raises UserError where it is not there, larger than 8 GiB, or cannot be read."""
    if not path.is_file():
        raise UserError(f"{path} {'is a folder' if path.is_dir() else 'does not exist'}; name {what}")
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise UserError(f"{path} is larger than {_MAX_BYTES >> 30} GiB; name {what}")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; check its permissions") from None


def read_weights(path: Path | str, what: str) -> dict[str, Tensor]:
    """The named tensors of a weight file, on the CPU, unchecked but for the file's form; see `check_weights`.

    A file whose name ends in -HEX.pth, as torch.hub names its downloads, must have a SHA-256 that begins so.

    Args:
        path: *.safetensors, or a state dict stored by `torch.save`.
        what: names the network in error messages.

    Raises:
        UserError: the file is missing, truncated, too large, no weight file, or one that holds more than tensors.
    """
    path = Path(path).expanduser()
    content = read_whole(path, f"the weights of {what}")
    promised = _HASHED_NAME.search(path.name)
    if promised and not hashlib.sha256(content).hexdigest().startswith(promised[1]):
        raise UserError(
            f"{path} is damaged or another file: its SHA-256 does not begin with {promised[1]} as its name says; "
            "download it again"
        )
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load(content)
        return _read_pickle(content)
    except (SafetensorError, ValueError, TypeError, KeyError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].split(". ")[0]  # torch adds advice
        raise UserError(
            f"{path} cannot be read as weights of {what} ({reason[:200]}); download it again or name another file"
        ) from None


def _read_pickle(content: bytes) -> dict[str, Tensor]:
    if zipfile.is_zipfile(io.BytesIO(content)):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = archive.infolist()
        stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
        if not stored or len(members) > _MAX_MEMBERS or sum(member.file_size for member in members) > len(content):
            raise ValueError("its archive is compressed, or declares more bytes than it has")
    try:
        found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # of a damaged file: whatever the pickle machine, zip reader and allocator raise
        raise ValueError(f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}") from None
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise ValueError("it holds no table of named tensors")
    return found


def check_weights(weights: Mapping[str, Any], expected: Mapping[str, Tensor], optional: str = "") -> dict[str, Tensor]:
    """The weights as contiguous tensors of their own, after every one was found to be what the network needs.

    Args:
        weights: what a file held.
        expected: the network's own `state_dict()`, of which only names, shapes and dtypes count (meta device will do).
        optional: names that end so may be missing and are left out of the result; "": none.

    Raises:
        ValueError: the first that is missing, not expected, not a dense tensor, of another shape or dtype, or not finite.
    """
    checked = {}
    for name in sorted(weights.keys() | expected.keys()):
        if name not in expected:
            raise ValueError(f"{name[:100]} is not expected")
        if optional and name.endswith(optional):
            continue
        if name not in weights:
            raise ValueError(f"{name} is missing")
        tensor, wanted = weights[name], expected[name]
        # Before anything touches the elements: those of a sparse, quantized or meta tensor may not be there.
        plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout == torch.strided
        if not plain or tensor.device.type != "cpu" or tensor.is_quantized:
            raise ValueError(f"{name} is not a plain tensor")
        if tensor.shape != wanted.shape or tensor.dtype != wanted.dtype:
            raise ValueError(f"{name} is {tensor.dtype} {list(tensor.shape)}, not {wanted.dtype} {list(wanted.shape)}")
        tensor = tensor.detach().clone(memory_format=torch.contiguous_format)
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name} holds NaN or infinity")
        checked[name] = tensor
    return checked


def weights_sha256(weights: Mapping[str, Tensor], description: Mapping[str, Any]) -> str:
    """SHA-256 of weights and of what is done to the images before and after them, as the module defines it."""
    digest = hashlib.sha256(json.dumps(description, sort_keys=True, allow_nan=False).encode())
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        elements: Any = tensor.reshape(-1).view(torch.uint8).numpy()
        digest.update(elements)
    return digest.hexdigest()


def hub_file(address: str) -> Path:
    """A file that the user names on the Hugging Face hub, downloaded if it is not in the hub's cache yet.

    Args:
        address: hf://OWNER/REPOSITORY/FILE.

    Raises:
        UserError: not such an address, huggingface-hub is not installed, or the file cannot be had.
    """
    parts = address.removeprefix("hf://").split("/", 2)
    if not address.startswith("hf://") or len(parts) != 3 or not all(parts):
        raise UserError(f"{address!r} names no file on the Hugging Face hub; write hf://OWNER/REPOSITORY/FILE")
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise UserError(f"{address} needs huggingface-hub; run: pip install huggingface-hub") from None
    try:
        return Path(hf_hub_download("/".join(parts[:2]), parts[2]))
    except Exception as error:  # the hub's, the HTTP client's and the file system's errors share no class
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise UserError(
            f"cannot fetch {address} ({reason[:120].rstrip('.')}); check the name and the connection, or fetch the file "
            "elsewhere and give its path"
        ) from None
