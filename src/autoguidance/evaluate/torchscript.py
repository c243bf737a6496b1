"""A TorchScript file as feature network: any network that was stored with its own code.

The convention is that of `callables`: the file's `forward` takes uint8 RGB images [N, 3, H, W] as they are and returns
float features [N, d]; resizing and normalization are part of it. Whoever makes the file:

    class Features(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            x = torch.nn.functional.interpolate(images.float() / 255, (224, 224), mode="bilinear", antialias=True)
            return self.body((x - self.mean) / self.std)
    torch.jit.script(Features(...).eval()).save("features.pt")

A TorchScript file IS a program. PyTorch interprets it, and it can call PyTorch's operators only: not Python, no
processes, no network. But there are operators that read and write files by name, loops that never end, and tensors of
any size, and the interpreter is not built to withstand an attack. So, unlike weights, a file is taken only when the
user names it, and should come from where the user would take a program from.

Checked before it runs: it is a TorchScript archive, its members declare no more bytes than can be there. Checked by
running it on noise (`CallableFeatures`): shape, type, NaN, and that an image's features do not depend on its
neighbours. It runs in evaluation mode and float32.

`sha256` is the hash of the file (with this convention's version): of code and weights alike.
"""

import hashlib
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import torch

from autoguidance.errors import UserError
from autoguidance.evaluate.callables import CallableFeatures
from autoguidance.evaluate.weights import read_whole

_MAX_CODE_BYTES = 64 << 20  # deflated members are source text


def _check_archive(content: bytes) -> None:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = archive.infolist()
    if not any(member.filename.endswith("/constants.pkl") for member in members):
        raise ValueError("it is an archive, but not of TorchScript")
    stored = sum(member.file_size for member in members if member.compress_type == zipfile.ZIP_STORED)
    deflated = sum(member.file_size for member in members if member.compress_type != zipfile.ZIP_STORED)
    if stored > len(content) or deflated > _MAX_CODE_BYTES:
        raise ValueError("it declares more bytes than it has")


def load_torchscript(path: Path | str, *, resolution: int, device: torch.device | str = "cpu") -> CallableFeatures:
    """Open a TorchScript file that the user named. RUNS the program in it; see the module.

    Args:
        path: the file.
        resolution: of the images to come, with which it is tried.
        device: where it runs.

    Raises:
        UserError: the file is missing, damaged or none of TorchScript, or it does not behave as a feature network.
    """
    path = Path(path).expanduser()
    content = read_whole(path, "a TorchScript file")
    try:
        _check_archive(content)
        network: Any = torch.jit.load(io.BytesIO(content), map_location=torch.device(device)).eval()
    except (RuntimeError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise UserError(
            f"{path} cannot be read as TorchScript ({reason[:200]}); store it with torch.jit.script(...).save"
        ) from None
    description = json.dumps({"kind": "torchscript", "version": 1, "file": hashlib.sha256(content).hexdigest()})
    return CallableFeatures(
        network,
        name=f"torchscript:{path.name}",
        sha256=hashlib.sha256(description.encode()).hexdigest(),
        resolution=resolution,
        resize="none",
        device=device,
    )
