"""The options of the EDM2 network and what each may be, so that a configuration from a file is refused before it costs time.

The bounds lie far beyond every published network: what exceeds them is a mistake or an attack.
"""

import math
from collections.abc import Mapping
from typing import Any

from autoguidance.errors import UserError

_WHOLE = {  # least and most
    "img_resolution": (1, 8192),
    "img_channels": (1, 1024),
    "label_dim": (0, 1_000_000),
    "model_channels": (1, 4096),
    "num_blocks": (0, 32),
    "channels_per_head": (1, 4096),
    "logvar_channels": (1, 65_536),
}
_WHOLE_OR_NONE = {"channel_mult_noise": (1, 64), "channel_mult_emb": (1, 64)}
_SHARES = ("label_balance", "concat_balance", "res_balance", "attn_balance")
_LISTS = {"channel_mult": (1, 64), "attn_resolutions": (1, 8192)}
_MAX_LENGTH = 16


def _is_whole(value: Any, least: float, most: float) -> bool:
    return type(value) is int and least <= value <= most


def _is_number(value: Any, least: float, most: float) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and least <= value <= most


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) <= _MAX_LENGTH


def _fits(key: str, value: Any) -> bool:
    if key in _WHOLE:
        return _is_whole(value, *_WHOLE[key])
    if key in _WHOLE_OR_NONE:
        return value is None or _is_whole(value, *_WHOLE_OR_NONE[key])
    if key in _LISTS:
        return _is_list(value) and all(_is_whole(part, *_LISTS[key]) for part in value)
    if key in _SHARES:
        return _is_number(value, 0, 1)
    if key == "dropout":
        return _is_number(value, 0, 1) and value < 1
    if key == "sigma_data":
        return _is_number(value, 1e-6, 1e6)
    if key == "clip_act":
        return value is None or (_is_number(value, 0, math.inf) and value > 0)
    if key == "resample_filter":
        # Even, so that a pixel's value goes to the block it belongs to; its sum is divided by.
        numbers = _is_list(value) and all(_is_number(part, -1e6, 1e6) for part in value)
        return numbers and len(value) > 0 and len(value) % 2 == 0 and sum(value) != 0
    return key == "use_fp16" and isinstance(value, bool)


def check_options(config: Mapping[str, Any]) -> None:
    """Refuse a configuration (keyword arguments of `Precond`, `UNet` and `Block`) with an unknown or impossible option.

    Raises: UserError naming the first one.
    """
    known = {
        *_WHOLE,
        *_WHOLE_OR_NONE,
        *_LISTS,
        *_SHARES,
        "dropout",
        "sigma_data",
        "clip_act",
        "resample_filter",
        "use_fp16",
    }
    for key, value in config.items():
        name = ascii(str(key)[:40])[1:-1]
        if key not in known:
            raise UserError(f"the network's configuration is not usable: there is no option {name}; remove it")
        if not _fits(key, value):
            simple = value is None or isinstance(value, (str, int, float))
            shown = ascii(str(value)[:40])[1:-1] if simple else f"a {type(value).__name__} like this"
            raise UserError(f"the network's configuration is not usable: {name} cannot be {shown}; correct the option")
