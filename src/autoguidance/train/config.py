"""The configuration of a training run: complete, checked, and the same after a round trip through JSON.

Problem: a run's result depends on some forty numbers, and a run that is resumed or repeated months later needs all of
them. So a preset and the user's changes (`--set key=value`) are resolved once into a `TrainConfig`, which the run
folder keeps; nothing has a hidden default later. Fields in `EXTENDABLE` may change when a run is resumed: they decide
how long it lasts and what is written, never the weights at a given number of images. Every other difference would
make another run, and is refused.
"""

import difflib
import hashlib
import json
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

from autoguidance.ema.power import MAX_EMA_STD
from autoguidance.errors import UserError

Dtype = Literal["float32", "bfloat16", "float16"]
SnapshotDtype = Literal["float32", "float16"]

# What a resumed run may change: its length, its records, and how much of the machine it may use up before it gives up.
EXTENDABLE = frozenset({"num_images", "num_snapshots", "checkpoint_seconds", "log_images", "max_nonfinite_steps"})

_COUNT = re.compile(r"(\d+(?:\.\d+)?)(Ki|Mi|Gi|)")
_UNITS = {"": 1, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


def parse_count(text: str | int) -> int:
    """A number of images: `N`, or N times 2^10, 2^20, 2^30 as `NKi`, `NMi`, `NGi`; N may have decimals before a unit.

    Raises UserError where the text is anything else, is not whole, or is not positive.
    """
    match = _COUNT.fullmatch(str(text).strip())
    value = float(match[1]) * _UNITS[match[2]] if match else 0.0
    if value < 1 or value != int(value):
        raise UserError(f"{text!r} is not a number of images; write a whole number such as 150000, 64Ki, 8Mi or 1Gi")
    return int(value)


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Size and options of an EDM2 network; resolution, channels and classes come from the data.

    The fields are keyword arguments of `models.precond.Precond`, `models.unet.UNet` and its `Block`; see there. The
    defaults are those of the paper's config G.
    """

    model_channels: int = 192
    channel_mult: tuple[int, ...] = (1, 2, 3, 4)
    channel_mult_noise: int | None = None
    channel_mult_emb: int | None = None
    num_blocks: int = 3
    attn_resolutions: tuple[int, ...] = (16, 8)
    channels_per_head: int = 64
    label_balance: float = 0.5
    concat_balance: float = 0.5
    res_balance: float = 0.3
    attn_balance: float = 0.3
    dropout: float = 0.0
    clip_act: float | None = 256.0
    resample_filter: tuple[int, ...] = (1, 1)
    sigma_data: float = 0.5
    logvar_channels: int = 128

    def __post_init__(self) -> None:
        _widen(self)
        for name in ("model_channels", "num_blocks", "channels_per_head", "logvar_channels", "sigma_data"):
            _require(getattr(self, name) > 0, f"network.{name}", getattr(self, name), "positive")
        for name in ("label_balance", "concat_balance", "res_balance", "attn_balance"):
            _require(0 <= getattr(self, name) <= 1, f"network.{name}", getattr(self, name), "between 0 and 1")
        _require(0 <= self.dropout < 1, "network.dropout", self.dropout, "at least 0 and below 1")
        _require(
            bool(self.channel_mult) and min(self.channel_mult) > 0,
            "network.channel_mult",
            self.channel_mult,
            "positive numbers",
        )
        even = bool(self.resample_filter) and len(self.resample_filter) % 2 == 0
        _require(even, "network.resample_filter", self.resample_filter, "of even length")

    def keywords(self, *, img_resolution: int, img_channels: int, num_classes: int, use_fp16: bool) -> dict[str, Any]:
        """The complete configuration of the network for `models.precond.build_model`, JSON-like."""
        return {
            "img_resolution": img_resolution,
            "img_channels": img_channels,
            "label_dim": num_classes,
            "use_fp16": use_fp16,
            **json.loads(json.dumps(asdict(self))),
        }


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that decides a training run, apart from the data itself.

    Attributes:
        preset: name of the preset that this came from, for the record.
        network: the network's size and options.
        encoder: configuration of the data encoder (`data.encoders.make_encoder`).
        num_images: images to train for, counted with repetition; rounded up to whole steps.
        batch_size: images per step, over all processes and accumulation rounds.
        micro_batch: most images of one forward pass in one process; smaller means gradient accumulation. None: no
            limit.
        learning_rate, ref_batches, rampup_images: see `train.schedule.learning_rate`.
        betas, eps: of Adam.
        p_mean, p_std: mean and standard deviation of ln sigma.
        label_dropout: share of images trained with the null label, so that one network can be its own unconditional
            guide.
        unconditional: ignore the data's labels.
        mirror: flip each image left-right with probability 1/2.
        ema_stds: relative widths of the two (or more) tracked averages.
        seed: fixes the initial weights, the order of the data, flips, noise and sigma.
        dtype: of the network's body while training; float16 needs a GPU.
        num_snapshots: see `train.schedule.snapshot_times`.
        snapshot_dtype: of the stored averages.
        log_images: images between two records of log.jsonl.
        checkpoint_seconds: seconds between two resume states; 0: after every step.
        max_nonfinite_steps: the run stops after this many skipped steps in a row.
    """

    preset: str = ""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    encoder: Mapping[str, Any] | None = None
    num_images: int = 2**20
    batch_size: int = 64
    micro_batch: int | None = None
    learning_rate: float = 0.01
    ref_batches: float = 1000.0
    rampup_images: int = 10_000
    betas: tuple[float, float] = (0.9, 0.99)
    eps: float = 1e-8
    p_mean: float = -0.4
    p_std: float = 1.0
    label_dropout: float = 0.0
    unconditional: bool = False
    mirror: bool = False
    ema_stds: tuple[float, ...] = (0.05, 0.1)
    seed: int = 0
    dtype: Dtype = "float32"
    num_snapshots: int = 24
    snapshot_dtype: SnapshotDtype = "float32"
    log_images: int = 2048
    checkpoint_seconds: float = 60.0
    max_nonfinite_steps: int = 100

    def __post_init__(self) -> None:
        _widen(self)
        for name in ("num_images", "batch_size", "learning_rate", "ref_batches", "eps", "p_std"):
            _require(getattr(self, name) > 0, name, getattr(self, name), "positive")
        for name in ("num_snapshots", "log_images", "max_nonfinite_steps"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("rampup_images", "checkpoint_seconds", "seed"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        _require(self.seed < 2**63, "seed", self.seed, "below 2^63")
        _require(
            self.micro_batch is None or self.micro_batch >= 1, "micro_batch", self.micro_batch, "at least 1, or none"
        )
        _require(0 <= self.label_dropout < 1, "label_dropout", self.label_dropout, "at least 0 and below 1")
        _require(
            len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas), "betas", self.betas, "two numbers in [0, 1)"
        )
        stds_fit = bool(self.ema_stds) and all(0 < std <= MAX_EMA_STD for std in self.ema_stds)
        _require(stds_fit, "ema_stds", self.ema_stds, f"above 0 and at most {MAX_EMA_STD:.3f}")
        named = len({f"{std:.3f}" for std in self.ema_stds}) == len(self.ema_stds)  # file names have three decimals
        _require(named, "ema_stds", self.ema_stds, "different in their first three decimals")
        _require(self.dtype in typing.get_args(Dtype), "dtype", self.dtype, "float32, bfloat16 or float16")
        fits = self.snapshot_dtype in typing.get_args(SnapshotDtype)
        _require(fits, "snapshot_dtype", self.snapshot_dtype, "float32 or float16")

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON-like values."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "TrainConfig":
        """The inverse of `to_json`. Raises UserError where a field is missing, unknown or of the wrong type."""
        return _from_json(cls, content, "")

    def sha256(self) -> str:
        """Hash of every field that decides the weights at a given number of images (all but `EXTENDABLE`)."""
        content = {name: value for name, value in self.to_json().items() if name not in EXTENDABLE}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def differences(self, other: "TrainConfig") -> list[str]:
        """What forbids that a run of this configuration goes on with `other`'s: lines `key: here, there`."""
        mine, theirs = _flatten(self.to_json()), _flatten(other.to_json())
        keys = sorted(mine.keys() | theirs.keys())
        return [
            f"{key}: {mine.get(key)}, {theirs.get(key)}"
            for key in keys
            if key not in EXTENDABLE and mine.get(key) != theirs.get(key)
        ]


def apply_overrides(config: TrainConfig, settings: Iterable[str]) -> TrainConfig:
    """Change fields by `key=value` texts; keys of the network are `network.model_channels` and so on.

    Values are read by the field's type: 0.01, true, none, 64Ki for counts of images, 1,2,3 for lists. Raises
    UserError where a key is unknown (naming the nearest ones) or a value does not fit.
    """
    hints = {
        **{key: hint for key, hint in typing.get_type_hints(TrainConfig).items() if key not in ("network", "encoder")},
        **{f"network.{key}": hint for key, hint in typing.get_type_hints(NetworkConfig).items()},
    }
    outer: dict[str, Any] = {}
    inner: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        key = key.strip()
        if not equals:
            raise UserError(f"--set {setting}: write key=value")
        if key not in hints:
            last = {name.rpartition(".")[2]: name for name in hints}
            near = [last[name] for name in difflib.get_close_matches(key.rpartition(".")[2], last, n=3)]
            raise UserError(
                f"--set {key}: no such option; "
                + (f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(sorted(hints))}")
            )
        value = _parse(hints[key], text.strip(), key)
        if key.startswith("network."):
            inner[key.removeprefix("network.")] = value
        else:
            outer[key] = value
    if inner:
        outer["network"] = replace(config.network, **inner)
    return replace(config, **outer)


def _widen(config: Any) -> None:
    """Store 1 as 1.0 in fields of type float, so that equal configurations have equal JSON and hashes."""
    for name, hint in typing.get_type_hints(type(config)).items():
        value = getattr(config, name)
        if (hint is float or float in typing.get_args(hint)) and type(value) is int:
            object.__setattr__(config, name, float(value))


def _require(holds: bool, name: str, value: Any, must_be: str) -> None:
    if not holds or (isinstance(value, float) and not math.isfinite(value)):
        raise UserError(f"{name} is {value}; it must be {must_be}")


def _parse(hint: Any, text: str, key: str) -> Any:
    """Read a text as the type of a field."""
    options = typing.get_args(hint)
    if isinstance(hint, types.UnionType):
        if text.lower() == "none":
            return None
        return _parse(next(option for option in options if option is not type(None)), text, key)
    if typing.get_origin(hint) is tuple:
        return tuple(_parse(options[0], part, key) for part in text.strip("[]() ").split(",") if part.strip())
    if typing.get_origin(hint) is Literal or hint is str:
        return text
    if hint is bool:
        if text.lower() not in ("true", "false", "1", "0", "yes", "no"):
            raise UserError(f"--set {key}={text}: write true or false")
        return text.lower() in ("true", "1", "yes")
    try:
        return parse_count(text) if hint is int and text[-1:] == "i" else hint(text)
    except ValueError:
        raise UserError(f"--set {key}={text}: not {'a whole' if hint is int else 'a'} number") from None


def _from_json(cls: Any, content: Any, where: str) -> Any:
    if not isinstance(content, Mapping):
        raise UserError(f"{where or 'the training configuration'} is not an object of options; restore config.json")
    hints = typing.get_type_hints(cls)
    wrong = sorted({item.name for item in fields(cls)} ^ content.keys())
    if wrong:
        raise UserError(
            f"the training configuration lacks or does not know {where}{wrong[0]}; it is of another version: "
            "start in another folder"
        )
    return cls(**{name: _typed(hints[name], value, f"{where}{name}") for name, value in content.items()})


def _typed(hint: Any, value: Any, where: str) -> Any:
    """Check a JSON value against a field's type and turn lists into tuples."""
    options = typing.get_args(hint)
    origin = typing.get_origin(hint)
    if isinstance(hint, types.UnionType):
        return None if value is None else _typed(next(o for o in options if o is not type(None)), value, where)
    if hint is NetworkConfig:
        return _from_json(NetworkConfig, value, f"{where}.")
    if origin is tuple and isinstance(value, list):
        return tuple(_typed(options[0], item, where) for item in value)
    if origin is Literal and value in options:
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    plain = origin or hint
    if isinstance(plain, type) and isinstance(value, plain) and (plain is bool or not isinstance(value, bool)):
        return value
    raise UserError(f"the training configuration has {where} = {value!r}, which does not fit; restore config.json")


def _flatten(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat.update(_flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value})
    return flat
