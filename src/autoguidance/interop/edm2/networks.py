"""A published network pickle as metadata and weights of ours.

The top value holds `ema` (class Precond), `encoder` and `dataset_kwargs`. The constructor's arguments
(`_init_kwargs`) give the configuration, the tree of `_modules`, `_parameters` and `_buffers` the weights, under the
names that our network has too. Everything is checked against a network built from that configuration (on the meta
device, without memory).
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autoguidance.data.vae import PUBLISHED_MEAN, PUBLISHED_STD, PUBLISHED_VAE
from autoguidance.errors import UserError
from autoguidance.interop.edm2.machine import RefusedError, shown
from autoguidance.interop.edm2.records import Array, Module, TensorView, naming, read_records
from autoguidance.interop.published_names import PUBLISHED_LICENCE, parse_published_name
from autoguidance.models import ModelInfo, all_finite, build_model
from autoguidance.models.options import check_options

_CLASSES = ("Precond", "UNet", "Block", "MPConv", "MPFourier", "ModuleDict")
_POSITIONAL = ("img_resolution", "img_channels", "label_dim", "use_fp16", "sigma_data", "logvar_channels")
_MAX_DEPTH = 8
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,99}/[A-Za-z0-9][\w.-]{0,99}")
_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def read_network(path: Path | str) -> tuple[ModelInfo, dict[str, Tensor]]:
    """A published network, without running anything in the file.

    Args:
        path: `PREFIX-KIMG7-STD3.pkl` (images seen and EMA width are taken from the name) or any other name.

    Returns: metadata, and weights as stored (float16 in published files) on the CPU: views of the memory-mapped file.
    Raises: UserError in one line where the file is not a published network, is damaged, or holds anything not known.
    """
    path = Path(path)
    with naming(path):
        top = read_records(path)
        if not isinstance(top, dict) or not isinstance(top.get("ema"), Module):
            raise RefusedError("it holds no network under 'ema'; is it a published EDM2 network?")
        network = top["ema"]
        if network.class_name != "Precond":
            raise RefusedError(f"its network is of class {shown(network.class_name)}, not Precond")
        config = _config(network.state)
        weights = {name: view.tensor() for name, view in _collect(network).items()}
        _check(config, weights)
        num_images, ema_std = parse_published_name(path.stem) or (0, None)
        info = ModelInfo(
            config=config,
            encoder=_encoder(top.get("encoder"), config),
            num_images=num_images,
            ema_std=ema_std,
            licence=PUBLISHED_LICENCE,
            provenance={"source": path.name, "format": "EDM2 network pickle"},
        )
    return info, weights


def _config(state: Mapping[Any, Any]) -> dict[str, Any]:
    arguments, keywords = state.get("_init_args", ()), state.get("_init_kwargs", {})
    if not isinstance(arguments, (tuple, list)) or not isinstance(keywords, dict) or len(arguments) > len(_POSITIONAL):
        raise RefusedError("the network's constructor arguments are not a tuple and a dictionary")
    config: dict[str, Any] = {**dict(zip(_POSITIONAL, arguments, strict=False)), **keywords}
    for key, value in config.items():
        if isinstance(value, tuple):
            config[key] = list(value)
    try:
        check_options(config)
    except UserError as error:
        raise RefusedError(str(error)) from None
    return config


def _collect(network: Module) -> dict[str, TensorView]:
    found: dict[str, TensorView] = {}
    seen: set[int] = set()  # of modules and storages: each belongs to one place, so nothing can multiply

    def once(thing: object, what: str) -> None:
        if id(thing) in seen:
            raise RefusedError(f"{what} occurs twice in the network; no published file shares any")
        seen.add(id(thing))

    def walk(module: Module, prefix: str, depth: int) -> None:
        once(module, "a module")
        if module.class_name not in _CLASSES:
            raise RefusedError(f"the network has a part of class {shown(module.class_name)}, which is not known")
        if depth > _MAX_DEPTH:
            raise RefusedError("the network's parts are nested too deep")
        for kind in ("_parameters", "_buffers", "_modules"):
            children = module.state.get(kind, {})
            if not isinstance(children, dict):
                raise RefusedError(f"a module's {kind} is not a dictionary")
            for name, child in children.items():
                if not isinstance(name, str) or not name or "." in name or len(name) > 100:
                    raise RefusedError(f"a part of the network has the name {shown(name)}")
                if child is None:
                    continue
                if kind == "_modules":
                    if not isinstance(child, Module):
                        raise RefusedError(f"{shown(prefix + name)} is not a module")
                    walk(child, f"{prefix}{name}.", depth + 1)
                    continue
                if not isinstance(child, TensorView):
                    raise RefusedError(f"{shown(prefix + name)} is not a tensor")
                if child.storage.dtype not in _DTYPES:
                    raise RefusedError(f"{shown(prefix + name)} has the type {child.storage.dtype}, not floating point")
                once(child.storage, "a tensor's storage")
                if not all_finite(child.storage.tensor()):
                    raise RefusedError(f"{shown(prefix + name)} holds values that are not finite")
                if prefix + name in found:
                    raise RefusedError(f"{shown(prefix + name)} occurs twice")
                found[prefix + name] = child

    walk(network, "", 0)
    return found


def _check(config: Mapping[str, Any], weights: Mapping[str, Tensor] | None) -> None:
    """Refuse weights that do not fit the options; weights None: only build the network."""
    try:
        with torch.device("meta"):
            wanted = {name: tensor.shape for name, tensor in build_model(config).state_dict().items()}
    except (ValueError, ZeroDivisionError, RuntimeError, OverflowError) as error:
        raise RefusedError(f"the network's options are impossible: {shown(error)}") from None
    if weights is None:
        return
    given = {name: tensor.shape for name, tensor in weights.items()}
    if wanted != given:
        names = sorted(name for name in wanted.keys() | given.keys() if wanted.get(name) != given.get(name))
        raise RefusedError(f"its weights do not fit its options ({len(names)} differ, first {shown(names[0])})")


def _encoder(encoder: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(encoder, Module):
        raise RefusedError("it holds no encoder")
    if encoder.class_name == "StandardRGBEncoder":
        if config["img_channels"] != 3:
            raise RefusedError("it has an RGB encoder but the network does not take three channels")
        return {"name": "pixels"}
    if encoder.class_name != "StabilityVAEEncoder":
        raise RefusedError(f"its encoder is of class {shown(encoder.class_name)}, which is not known")
    keywords = encoder.state.get("_init_kwargs", {})
    name = encoder.state.get(
        "vae_name", keywords.get("vae_name", PUBLISHED_VAE) if isinstance(keywords, dict) else PUBLISHED_VAE
    )
    if not isinstance(name, str) or not _HUB_NAME.fullmatch(name) or ".." in name:
        raise RefusedError(f"its encoder names the VAE {shown(name)}, which is not OWNER/NAME")
    # The published object holds scale = 0.5 / raw_std and bias = -raw_mean * scale; both are turned back.
    scale, bias = (_vector(encoder.state.get(key), config["img_channels"]) for key in ("scale", "bias"))
    if scale is None or bias is None:
        mean, std = np.array(PUBLISHED_MEAN), np.array(PUBLISHED_STD)
    else:
        std, mean = 0.5 / scale, -bias / scale
    if not (np.isfinite(std).all() and np.isfinite(mean).all()):
        raise RefusedError("its encoder's scale and bias are not usable")
    return {"name": "vae", "vae": name, "raw_mean": _short(mean), "raw_std": _short(std)}


def _vector(value: Any, length: int) -> np.ndarray | None:
    if value is None:
        return None
    sizes = {TensorView: lambda: value.numel, Array: lambda: 0 if value.value is None else value.value.size}
    if sizes.get(type(value), lambda: len(value) if isinstance(value, (list, tuple)) else length)() != length:
        raise RefusedError(f"its encoder's scale and bias are not {length} numbers, one per channel")
    if isinstance(value, TensorView):
        numbers = value.tensor().double().flatten().numpy()
    elif isinstance(value, Array) and value.value is not None:
        numbers = value.value.astype(np.float64).flatten()
    elif isinstance(value, (list, tuple)) and all(isinstance(part, (int, float)) for part in value):
        numbers = np.array(value, dtype=np.float64)
    else:
        raise RefusedError("its encoder's scale and bias are not arrays of numbers")
    if not numbers.all():
        raise RefusedError("its encoder's scale and bias hold a zero")
    return numbers


def _short(values: np.ndarray) -> list[float]:
    """Rounded to six digits: the file holds float32, the constants were given with three."""
    return [float(f"{value:.6g}") for value in values]


# Building the first network on the meta device imports much of torch. Done here, nothing is imported while a file is read.
_check({"img_resolution": 8, "img_channels": 1, "model_channels": 8, "channel_mult": [1], "channels_per_head": 8}, None)
