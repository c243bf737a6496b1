"""What must be known about a distance before it may be compared with another.

A Fréchet distance falls with the number of images (bias), moves with the seeds, drops when labels are balanced
instead of random, and means something else with every feature network, reference set and resize. So a result carries
its protocol, and two results are compared only where the fields in `COMPARED` agree; the rest (seeds, solver,
repeats, code version) may differ, since that is often what is being compared.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib import metadata
from typing import Any

from autoguidance.errors import UserError

COMPARED = ("features_sha256", "num_images", "class_sampling", "reference_sha256", "num_real", "resize")


def code_version() -> str:
    """Version of the installed package; "unknown" when run from a copy that is not installed."""
    try:
        return metadata.version("autoguidance")
    except metadata.PackageNotFoundError:
        return "unknown"


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How a distance was measured: the `protocol` of results.json.

    Attributes:
        features: name of the feature network behind `fd`.
        features_sha256: its hash (weights and preprocessing).
        num_images: generated images in each repeat.
        reference: name of the real set.
        reference_sha256: its fingerprint (pixels and labels).
        num_real: images in it; 0 where somebody else's statistics do not say.
        class_sampling: how the generated images got their class: "random", "balanced", a list, "none", or "unknown".
        seeds: one text per repeat, e.g. "0-999"; () if unknown.
        repeats: disjoint sets of `num_images` that were measured.
        solver: the sampler and its settings, JSON-like; None if the images were given.
        resize: how images were brought to the network's size; "none" if they were not.
        device: kind of device of the feature network, "cpu" or "cuda"; "unknown" in older results.
        metrics: per metric beyond the Fréchet distance, its settings, e.g. {"kid": {"subsets": 100, ...}}.
        other_features: name -> hash of further networks whose distances the rows carry.
        notes: what limits the figures, e.g. a singular covariance.
        version: of this code.

    Raises:
        UserError: a count below 1 (2 for images, 0 for num_real), or seeds for another number of repeats.
    """

    features: str
    features_sha256: str
    num_images: int
    reference: str
    reference_sha256: str
    num_real: int
    class_sampling: str = "unknown"
    seeds: tuple[str, ...] = ()
    repeats: int = 1
    solver: Mapping[str, Any] | None = None
    resize: str = "none"
    device: str = "unknown"
    metrics: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    other_features: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    version: str = field(default_factory=code_version)

    def __post_init__(self) -> None:
        for name, least in (("num_images", 2), ("num_real", 0), ("repeats", 1)):
            if getattr(self, name) < least:
                raise UserError(f"protocol: {name} is {getattr(self, name)}; give at least {least}")
        if self.seeds and len(self.seeds) != self.repeats:
            raise UserError(
                f"protocol: seeds of {len(self.seeds)} repeats for {self.repeats} repeats; give one text per repeat"
            )

    def to_dict(self) -> dict[str, Any]:
        """JSON-like, as results.json stores it."""
        return {**asdict(self), "seeds": list(self.seeds), "notes": list(self.notes)}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Protocol":
        """Read what `to_dict` made; fields of later versions are ignored. Raises UserError where it is damaged."""
        known = {item.name: content[item.name] for item in fields(cls) if item.name in content}
        try:
            return cls(**{**known, "seeds": tuple(known.get("seeds", ())), "notes": tuple(known.get("notes", ()))})
        except TypeError as error:
            raise UserError(
                f"the protocol is incomplete or damaged ({error}); measure again with `autoguidance evaluate`"
            ) from None


def require_comparable(a: Protocol, b: Protocol, *, force: bool = False) -> tuple[str, ...]:
    """Refuse to compare figures that were measured in different ways.

    Args:
        a, b: the protocols of two results.
        force: compare all the same.

    Returns:
        Names of the fields that differ: () unless forced; show them beside a forced comparison.

    Raises:
        UserError: they differ in a field of `COMPARED` and `force` is not set.
    """
    different = tuple(name for name in COMPARED if getattr(a, name) != getattr(b, name))
    if different and not force:
        values = "; ".join(
            f"{name}: {_short(getattr(a, name))} against {_short(getattr(b, name))}" for name in different
        )
        raise UserError(f"these results do not compare ({values}); measure both by one protocol, or force it (--force)")
    return different


def _short(value: Any) -> str:
    return value[:16] if isinstance(value, str) else str(value)
