"""A writer of files in the published EDM2 format, so that the reader can be tested without a download.

The bytes come from Python's own pickler. Published pickles name classes of the reference program (`dnnlib.util.EasyDict`,
`torch_utils.persistence._reconstruct_persistent_obj`); stand-ins of these names exist in `sys.modules` while a file is written and
at no other time. Facts from ../shared/spec/edm2-formats.md; no code of the reference program is used or known here.

Every object carries, as published ones do, a source text that the reference program executes on load. Here that text makes a
canary file, so executing it shows.
"""

import io
import pickle
import struct
import sys
import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

RAW_MEAN, RAW_STD = (5.81, 3.25, 0.12, -2.15), (4.17, 4.62, 3.71, 3.28)
BUFFERS = ("freqs", "phases")


def _never(*arguments: object) -> None:
    raise AssertionError("a stand-in of the writer was called")


def _named(module: str, name: str) -> Callable[..., None]:
    """A function that pickles as module.name."""
    function = types.FunctionType(_never.__code__, globals(), name)
    function.__module__, function.__qualname__ = module, name
    return function


class EasyDict(dict[str, Any]):
    """Pickles as `dnnlib.util.EasyDict`: made by NEWOBJ, filled by SETITEMS."""


EasyDict.__module__ = "dnnlib.util"
_RECONSTRUCT = _named("torch_utils.persistence", "_reconstruct_persistent_obj")
_OLD_ARRAY = _named("numpy.core.multiarray", "_reconstruct")
_STAND_INS: dict[str, dict[str, Any]] = {
    "dnnlib": {},
    "dnnlib.util": {"EasyDict": EasyDict},
    "torch_utils": {},
    "torch_utils.persistence": {"_reconstruct_persistent_obj": _RECONSTRUCT},
    "numpy.core": {},
    "numpy.core.multiarray": {"_reconstruct": _OLD_ARRAY},
}


@contextmanager
def reference_modules() -> Iterator[None]:
    """The names of the reference program, importable for as long as a file is written."""
    before = {name: sys.modules.get(name) for name in _STAND_INS}
    for name, content in _STAND_INS.items():
        module = types.ModuleType(name)
        module.__dict__.update(content)
        sys.modules[name] = module
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


class Raw:
    """Opcodes to write as they are in the place of a value. They must leave one value on the stack."""

    def __init__(self, code: bytes) -> None:
        self.code = code


class Persistent:
    """An object of the reference program. `meta` is what its file describes it by; `state` its attributes."""

    def __init__(self, class_name: str, state: dict[str, Any], source: str) -> None:
        self.state = state
        self.meta: dict[Any, Any] = {
            "type": "class",
            "version": 6,
            "module_src": source,
            "class_name": class_name,
            "state": state,
        }

    def __reduce__(self) -> tuple[Any, ...]:
        return _RECONSTRUCT, (self.meta,)


def canary_source(canary: Path) -> str:
    """A source text whose execution makes the file `canary`."""
    return f"import os\nopen({str(canary)!r}, 'w').close()\nos.system('touch {canary}')\nclass Precond: pass\n"


def _module_state(**attributes: Any) -> dict[str, Any]:
    """The __dict__ of a torch module, with its hooks' empty OrderedDicts, and some attributes."""
    return {**torch.nn.Module().__dict__, "_init_args": (), "_init_kwargs": {}, **attributes}


def _class_of(name: str, parent: str, children: set[str]) -> str:
    if name == "unet":
        return "UNet"
    if name in ("enc", "dec"):
        return "ModuleDict"
    if parent in ("enc", "dec") and not name.endswith("_conv"):
        return "Block"
    return "MPFourier" if "freqs" in children else "MPConv"


def _tree(name: str, parent: str, weights: Mapping[str, Tensor], source: str, **attributes: Any) -> Any:
    """The object whose tensors have these names, relative to it."""
    children = dict.fromkeys(key.split(".")[0] for key in weights)
    class_name = "Precond" if not name else _class_of(name, parent, set(children))
    module = torch.nn.ModuleDict()
    state = module.__dict__ if class_name == "ModuleDict" else _module_state(**attributes)
    state["training"] = False
    for child in children:
        if child in weights:
            tensor = weights[child].detach().clone()
            if child in BUFFERS:
                state["_buffers"][child] = tensor
            else:
                state["_parameters"][child] = torch.nn.Parameter(tensor, requires_grad=tensor.is_floating_point())
        else:
            prefix = f"{child}."
            inner = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
            state["_modules"][child] = _tree(child, name, inner, source)
    return module if class_name == "ModuleDict" else Persistent(class_name, state, source)


def rgb_encoder(source: str = "") -> Persistent:
    """Pixels: no state beyond the constructor's arguments."""
    return Persistent("StandardRGBEncoder", {"_init_args": (), "_init_kwargs": {}}, source)


def vae_encoder(source: str = "", *, name: str = "stabilityai/sd-vae-ft-mse") -> Persistent:
    """Latents: latent * scale + bias with scale = 0.5 / raw_std, bias = -raw_mean * scale."""
    scale = np.float32(0.5) / np.array(RAW_STD, np.float32)
    bias = -np.array(RAW_MEAN, np.float32) * scale
    state = {"_init_args": (), "_init_kwargs": {}, "vae_name": name, "scale": scale, "bias": bias, "batch_size": 8}
    return Persistent("StabilityVAEEncoder", {**state, "_vae": None}, source)


def network_objects(
    kwargs: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    *,
    dtype: torch.dtype | None = torch.float16,
    source: str = "",
    args: tuple[Any, ...] = (),
) -> EasyDict:
    """The top value of a network file, still open to changes.

    Args:
        kwargs, args: the constructor's arguments as the file is to record them.
        weights: flat names as in `golden/net-*.weights.safetensors`.
        dtype: what they are stored as; None: as given.
        source: the source text of every object.
    """
    cast = {name: tensor if dtype is None else tensor.to(dtype) for name, tensor in weights.items()}
    network = _tree("", "", cast, source, **{key: kwargs[key] for key in kwargs if key.startswith("img_")})
    network.state["_init_args"], network.state["_init_kwargs"] = args, dict(kwargs)
    loss = Persistent("EDM2Loss", {"P_mean": -0.4, "P_std": 1.0, "sigma_data": 0.5, "_init_args": ()}, source)
    return EasyDict(
        encoder=rgb_encoder(source),
        dataset_kwargs=EasyDict(class_name="training.dataset.ImageFolderDataset", path="data.zip", use_labels=True),
        loss_fn=loss,
        ema=network,
    )


def reference_objects(features: int = 8, *, dino: int = 4, seed: int = 0) -> dict[str, Any]:
    """The top value of a file of reference statistics (with few features)."""
    generator = np.random.default_rng(seed)

    def statistics(size: int) -> dict[str, np.ndarray]:
        root = generator.normal(size=(size, size))
        return {"mu": generator.normal(size=size), "sigma": root @ root.T}

    return {"num_images": 50_000, "fid": statistics(features), "fd_dinov2": statistics(dino)}


# The pickler in Python writes the same bytes as the one in C, and single values can be replaced. It has no type stub.
_Pickler: Any = vars(pickle)["_Pickler"]


class Writer(_Pickler):
    """Python's pickler with the choices that published files may have made.

    Args:
        protocol: 2 to 5.
        text_globals: names by GLOBAL in every protocol.
        old_numpy: arrays by `numpy.core.multiarray._reconstruct`, as numpy 1 writes them.
        zip_storages: tensors' storages in torch's zip form.
        edited: LONG_BINPUT for MEMOIZE and no frames, so that raw opcodes may store values too (from memo index 2^20) and may be
            cut out of the file again.
    """

    def __init__(
        self,
        file: io.BytesIO,
        protocol: int = 4,
        *,
        text_globals: bool = False,
        old_numpy: bool = True,
        zip_storages: bool = False,
        edited: bool = False,
    ) -> None:
        super().__init__(file, protocol)
        self.text_globals, self.old_numpy, self.zip_storages = text_globals, old_numpy, zip_storages
        self.edited = edited
        if edited:
            self.framer.start_framing = lambda: None

    def put(self, idx: int) -> bytes:
        return pickle.LONG_BINPUT + struct.pack("<I", idx) if self.edited else super().put(idx)

    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        if isinstance(obj, Raw):
            self.write(obj.code)
        else:
            super().save(obj, save_persistent_id)

    def save_global(self, obj: Any, name: str | None = None) -> None:
        if self.text_globals:
            self.write(pickle.GLOBAL + f"{obj.__module__}\n{obj.__qualname__}\n".encode())
            self.memoize(obj)
        else:
            super().save_global(obj, name)

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, np.ndarray) and self.old_numpy:
            return _OLD_ARRAY, (np.ndarray, (0,), b"b"), obj.__reduce__()[2]
        if isinstance(obj, torch.storage.TypedStorage) and self.zip_storages:
            archive = io.BytesIO()
            torch.save(obj, archive)
            return torch.storage._load_from_bytes, (archive.getvalue(),)
        return NotImplemented

    dispatch: ClassVar[dict[Any, Any]] = {**_Pickler.dispatch, types.FunctionType: save_global}


def dumps(value: Any, protocol: int = 4, **options: Any) -> bytes:
    """The bytes of a file; the options are those of `Writer`."""
    buffer = io.BytesIO()
    with reference_modules(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls typed storages deprecated; published files hold them
        Writer(buffer, protocol, **options).dump(value)
    return buffer.getvalue()


def write_network(
    path: Path,
    config: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    *,
    encoder: Persistent | None = None,
    dtype: torch.dtype | None = torch.float16,
    source: str = "",
    **options: Any,
) -> Path:
    """A network file. Args: see `network_objects` and `Writer`; encoder None is RGB pixels."""
    top = network_objects(config, weights, dtype=dtype, source=source)
    if encoder is not None:
        top["encoder"] = encoder
    path.write_bytes(dumps(top, **options))
    return path
