"""What a run folder says about itself, read once, checked, and put into typed records.

`results.json` is written by `autoguidance run` and by studies, of this version and others, so a reader must survive
missing parts: every figure may be null or absent, there may be one method or six, labels or none, images or none.
What must not be survived is damage: a file that is not JSON, no rows, or text where a number belongs is a `UserError`
that names the file. A non-finite figure counts as absent.
"""

import math
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from autoguidance.errors import UserError
from autoguidance.storage import read_json, read_json_lines

# In the order in which tables, plots and grids show them; methods that are not listed follow.
METHODS = ("unguided", "cfg", "cfg+interval", "autoguidance")
METHOD_TITLES = {
    "unguided": "Unguided",
    "cfg": "CFG",
    "cfg+interval": "CFG + interval",
    "autoguidance": "Autoguidance",
    "real": "Real images",
}
_FIGURES = ("weight", "fd", "fd_std", "evaluations_main", "evaluations_guide", "seconds_per_image")
_EXTRA_METRICS = ("kid", "precision", "recall", "density", "coverage")
_IMAGE_COUNT_KEYS = ("num_images", "images", "nimg")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One compared setting. Distances are means over `fd_repeats`, evaluations are per image, None is unknown."""

    method: str
    main: str = ""
    guide: str = ""
    weight: float | None = None
    interval: tuple[float, float] | None = None
    fd: float | None = None
    fd_std: float | None = None
    fd_repeats: tuple[float, ...] = ()
    evaluations_main: float | None = None
    evaluations_guide: float | None = None
    seconds_per_image: float | None = None
    extras: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SearchPoint:
    """One setting that the search measured on `num_images` generated images; other counts do not compare."""

    method: str
    main: str
    guide: str
    weight: float | None
    interval: tuple[float, float] | None
    fd: float
    num_images: int | None

    def same_setting(self, row: Row) -> bool:
        """Whether this point measured the setting that `row` reports."""
        names = ("method", "main", "guide", "weight", "interval")
        return all(getattr(self, name) == getattr(row, name) for name in names)


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """Generated (or real) images with the seed and class that each was made from."""

    seeds: Int64[np.ndarray, "N"]
    class_idx: Int64[np.ndarray, "N"] | None
    images: UInt8[np.ndarray, "N C H W"]


@dataclass(frozen=True, kw_only=True)
class RunRecords:
    """All that the report shows of one run folder.

    Attributes:
        folder: where the run lies, as the caller named it.
        protocol: how the figures were measured, as recorded.
        rows: the compared settings, in the order of `METHODS`, then as recorded.
        search: every setting measured while searching.
        dataset, training, seconds: as recorded; {} where absent.
        real_half: distance between half of the real set and all of it, the least one can expect; None if not measured.
        images: method -> images, from `images/*.npz`, in the order of `rows`.
        losses: network -> (images seen [n], loss [n]), from `NETWORK/log.jsonl`.
        sensitivity: per method how the distance changes around its best setting, as recorded; {} where absent.
        guides: of the study `gap`, as recorded: a guide's size, training and diagnosis each; () where absent.
        efficiency: of the study of that name, as recorded: a row's operations per image each; () where absent.
        mixing: of the study of that name, as recorded: a row's total weight and alpha each; () where absent.
        degradations: of the study of that name, as recorded: what a row is and what it recovers; () where absent.
    """

    folder: Path
    protocol: Mapping[str, Any]
    rows: tuple[Row, ...]
    search: tuple[SearchPoint, ...]
    dataset: Mapping[str, Any]
    training: Mapping[str, Mapping[str, Any]]
    seconds: Mapping[str, float]
    real_half: float | None
    images: Mapping[str, ImageSet]
    losses: Mapping[str, tuple[np.ndarray, np.ndarray]]
    sensitivity: Mapping[str, Any] = field(default_factory=dict)
    guides: Sequence[Mapping[str, Any]] = ()
    efficiency: Sequence[Mapping[str, Any]] = ()
    mixing: Sequence[Mapping[str, Any]] = ()
    degradations: Sequence[Mapping[str, Any]] = ()

    @property
    def class_names(self) -> tuple[str, ...]:
        names = self.dataset.get("class_names")
        return tuple(str(name) for name in names) if isinstance(names, list) else ()

    @property
    def num_images(self) -> int | None:
        """Generated images behind each distance of `rows`."""
        count = self.protocol.get("num_images")
        return count if isinstance(count, int) else None

    def best(self, *methods: str) -> Row | None:
        """The measured row with the least distance among these methods (all if none is named), or None."""
        measured = [(row.fd, index) for index, row in enumerate(self.rows) if row.fd is not None]
        allowed = [item for item in measured if not methods or self.rows[item[1]].method in methods]
        return self.rows[min(allowed)[1]] if allowed else None


def method_order(method: str) -> tuple[int, str]:
    """Sorting key: the known methods first, in their usual order, then the others by name."""
    return (METHODS.index(method) if method in METHODS else len(METHODS), method)


def file_name(method: str) -> str:
    """A method's name as a file's: labels may have spaces and slashes."""
    return "".join(c if c.isalnum() or c in "+-_.," else "-" for c in method)


def split_model_name(name: str) -> tuple[str, str, str]:
    """A model's name as (path, EMA width, images seen): "runs/main@0.070:8Mi" -> ("runs/main", "0.070", "8Mi").

    Parts that the name does not give are "". A snapshot file's name carries both.
    """
    match = re.fullmatch(r"(?P<path>.*?)@(?P<std>[0-9.]+)(?::(?P<images>[0-9]+(?:Ki|Mi|Gi)?))?", name)
    if match:
        return match["path"], match["std"], match["images"] or ""
    match = re.fullmatch(r"(?:.*/)?(?P<images>[0-9]{11})-(?P<std>[0-9.]+)\.safetensors", name)
    return (name, match["std"], str(int(match["images"]))) if match else (name, "", "")


def number(value: Any, what: str, path: Path) -> float | None:
    """A figure of a file, or None where it is null or not finite.

    Args:
        value: what the file holds.
        what: names it in the message.
        path: the file.

    Raises: UserError where it is not a number.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{path}: {what} is {value!r}, not a number; restore the file or run `autoguidance run` again")
    return float(value) if math.isfinite(value) else None


def _interval(value: Any, what: str, path: Path) -> tuple[float, float] | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 2:
        raise UserError(f"{path}: {what} is {value!r}, not a pair of noise levels; restore the file or run again")
    low, high = (number(bound, what, path) for bound in value)
    # JSON has no infinity: an open end is null.
    return (0.0 if low is None else low, math.inf if high is None else high)


def _mapping(content: Mapping[str, Any], key: str, path: Path) -> dict[str, Any]:
    value = content.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UserError(f"{path}: {key} is not an object; restore the file or run `autoguidance run` again")
    return value


def record_list(content: Mapping[str, Any], key: str, path: Path, named: str = "method") -> list[dict[str, Any]]:
    """A list of records of a file, each with a text under `named`; [] where absent. Raises UserError where damaged."""
    value = content.get(key) or []
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise UserError(f"{path}: {key} is not a list of records; restore the file or run `autoguidance run` again")
    if not all(isinstance(item.get(named), str) for item in value):
        raise UserError(f"{path}: a record in {key} has no {named}; restore the file or run `autoguidance run` again")
    return value


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def measured_row(record: Mapping[str, Any], path: Path) -> Row:
    """A row of a file; mean and deviation are made from the repeats where absent. Raises UserError where damaged."""
    figures = {
        name: number(record.get(name), f"{name} of {record['method']}", path) for name in (*_FIGURES, *_EXTRA_METRICS)
    }
    repeats = record.get("fd_repeats") or []
    if not isinstance(repeats, list):
        raise UserError(f"{path}: fd_repeats of {record['method']} is not a list; restore the file or run again")
    numbers = [number(value, f"fd_repeats of {record['method']}", path) for value in repeats]
    fd_repeats = tuple(value for value in numbers if value is not None)
    extras = {name: value for name in _EXTRA_METRICS if (value := figures.pop(name)) is not None}
    if figures["fd"] is None and fd_repeats:
        figures["fd"] = float(np.mean(fd_repeats))
    if figures["fd_std"] is None and len(fd_repeats) > 1:
        figures["fd_std"] = float(np.std(fd_repeats, ddof=1))
    return Row(
        method=record["method"],
        main=_text(record.get("main")),
        guide=_text(record.get("guide")),
        interval=_interval(record.get("interval"), f"interval of {record['method']}", path),
        fd_repeats=fd_repeats,
        extras=extras,
        **figures,
    )


def _search_points(records: list[dict[str, Any]], path: Path) -> tuple[SearchPoint, ...]:
    points = []
    for record in records:
        fd = number(record.get("fd"), "fd of a searched setting", path)
        if fd is None:
            continue  # a setting that failed has no distance and no place in a curve
        count = number(record.get("num_images"), "num_images of a searched setting", path)
        points.append(
            SearchPoint(
                method=record["method"],
                main=_text(record.get("main")),
                guide=_text(record.get("guide")),
                weight=number(record.get("weight"), "weight of a searched setting", path),
                interval=_interval(record.get("interval"), "interval of a searched setting", path),
                fd=fd,
                num_images=None if count is None else int(count),
            )
        )
    return tuple(points)


def _read_images(path: Path) -> ImageSet:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            images = arrays["images"]
            seeds = arrays["seeds"] if "seeds" in arrays else np.arange(len(images))
            class_idx = arrays.get("class_idx")
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read ({error}); remove it, or run `autoguidance run` again") from None
    whole = images.dtype == np.uint8 and images.ndim == 4 and images.shape[1] in (1, 3) and 0 not in images.shape[2:]
    if not whole or seeds.shape != (len(images),):
        raise UserError(f"{path}: images are not uint8 [N, 1 or 3, H, W] with one seed each; remove it, or run again")
    # Unlabelled sets are written without classes, with an array of another length, or with -1.
    labelled = class_idx is not None and class_idx.shape == seeds.shape and class_idx.dtype.kind in "iu"
    if class_idx is None or not labelled or (class_idx < 0).any():
        return ImageSet(seeds=seeds.astype(np.int64), class_idx=None, images=images)
    return ImageSet(seeds=seeds.astype(np.int64), class_idx=class_idx.astype(np.int64), images=images)


def _read_image_sets(folder: Path, rows: Sequence[Row]) -> dict[str, ImageSet]:
    """The image files by method, in the order of the rows; then those of no row, by name."""
    methods = {file_name(row.method): row.method for row in rows}
    sets = {methods.get(file.stem, file.stem): _read_images(file) for file in sorted(folder.glob("*.npz"))}
    named = [method for method in methods.values() if method in sets]
    return {name: sets[name] for name in (*named, *(name for name in sets if name not in named))}


def _read_losses(folder: Path) -> tuple[np.ndarray, np.ndarray] | None:
    points = []
    for record in read_json_lines(folder / "log.jsonl"):
        if not isinstance(record, dict):
            continue
        count = next((record[key] for key in _IMAGE_COUNT_KEYS if isinstance(record.get(key), int)), None)
        loss = record.get("loss")
        if count is not None and isinstance(loss, int | float) and math.isfinite(loss):
            points.append((count, float(loss)))
    if len(points) < 2:
        return None
    # A resumed run repeats the steps after its last checkpoint; the later record of a count is the one that was kept.
    kept = sorted(dict(points).items())
    return np.array([count for count, _ in kept]), np.array([loss for _, loss in kept])


def read_run(folder: Path | str) -> RunRecords:
    """Read a run folder.

    Args:
        folder: a folder with `results.json` and, if the run made them, `images/METHOD.npz` and `NETWORK/log.jsonl`.

    Returns:
        The records; parts that are absent are empty.

    Raises:
        UserError: the folder or its `results.json` is missing, or a file in it is damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; name the output folder of `autoguidance run`")
    path = folder / "results.json"
    if not path.exists():
        raise UserError(f"{folder} has no results.json; name the output folder of a finished `autoguidance run`")
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("rows"), list):
        raise UserError(f"{path} has no rows of compared methods; name the output folder of `autoguidance run`")
    rows = [measured_row(record, path) for record in record_list(content, "rows", path)]
    rows.sort(key=lambda row: method_order(row.method)[0])
    training = _mapping(content, "training", path)
    networks = [name for name in ("main", "guide", "unconditional") if name in training or (folder / name).is_dir()]
    times = _mapping(content, "seconds", path)
    seconds = {name: number(value, f"seconds of {name}", path) for name, value in times.items()}
    return RunRecords(
        folder=folder,
        protocol=_mapping(content, "protocol", path),
        rows=tuple(rows),
        search=_search_points(record_list(content, "search", path), path),
        dataset=_mapping(content, "dataset", path),
        training={name: value for name, value in training.items() if isinstance(value, dict)},
        seconds={name: value for name, value in seconds.items() if value is not None},
        real_half=number(_mapping(content, "baseline", path).get("real_half"), "real_half", path),
        images=_read_image_sets(folder / "images", rows),
        losses={name: loss for name in networks if (loss := _read_losses(folder / name)) is not None},
        sensitivity=_mapping(content, "sensitivity", path),
        guides=record_list(content, "guides", path, named="guide"),
        efficiency=record_list(content, "efficiency", path),
        mixing=record_list(content, "mixing", path),
        degradations=record_list(content, "degradations", path),
    )
