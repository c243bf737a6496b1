"""What a set of images offers once it has been checked, and how a set that cannot be used says so.

Images x [N, C, R, R] are uint8 with C = 1 (grey) or 3 (RGB); labels class_idx [N] are int64 or absent. The fingerprint

    sha256( bytes of x in order | labels as little-endian int64 | JSON of shape and class names )

depends on the content alone: the same images in the same order have the same one as a folder, a zip, an array file or a
Hugging Face dataset.
"""

import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from autoguidance.errors import UserError

ProgressCallback = Callable[[int, int, dict[str, Any]], None]

SHOWN_PROBLEMS = 5  # in the one line of DataError; `data inspect` lists all


@runtime_checkable
class ImageSource(Protocol):
    """A checked set of square images of one size.

    Attributes:
        name: short name for tables and messages.
        num_images: N, at least 1.
        resolution: R = H = W in pixels.
        channels: C: 1 (grey) or 3 (RGB).
        class_names: one name per class; () for an unlabelled set.
        class_idx: int64 [N], the class of each image; None for an unlabelled set.
        num_classes: len(class_names).
        fingerprint: SHA-256 in hexadecimal over pixels, labels and class names.
    """

    @property
    def name(self) -> str: ...
    @property
    def num_images(self) -> int: ...
    @property
    def resolution(self) -> int: ...
    @property
    def channels(self) -> int: ...
    @property
    def class_names(self) -> tuple[str, ...]: ...
    @property
    def class_idx(self) -> Int64[np.ndarray, "N"] | None: ...
    @property
    def num_classes(self) -> int: ...
    @property
    def fingerprint(self) -> str: ...

    def read(self, indices: Sequence[int] | np.ndarray | Tensor) -> UInt8[Tensor, "n C R R"]:
        """The images with these indices (0 .. N-1), in this order; repeats are allowed. The caller owns the result."""
        ...


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One reason why a set cannot be used. `where` names the file; "" is a problem of the set as a whole."""

    where: str
    what: str

    def __str__(self) -> str:
        return f"{printable(self.where)} ({self.what})" if self.where else self.what


@dataclass(kw_only=True)
class Survey:
    """What was found while the files were listed and checked; complete also where the set turned out to be unusable.

    Attributes:
        name: the set as the user named it.
        kind: "folder", "zip", "array", "hugging face" or "digits".
        num_files: image files found, with those that are listed but absent.
        formats: images per file format, e.g. {"PNG": 500}.
        modes: images per Pillow colour mode, e.g. {"RGBA": 20, "RGB": 480}.
        ignored: files that are not images, by suffix or reason.
        class_counts: images per class name; {} for an unlabelled set.
        notes: what the user may want to know but need not mend.
        problems: what makes the set unusable; [] after `open_data` succeeded.
    """

    name: str
    kind: str
    num_files: int = 0
    formats: Counter[str] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    ignored: Counter[str] = field(default_factory=Counter)
    class_counts: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


class DataError(UserError):
    """A set with unusable files: one line that counts them and names the first; `problems` and `survey` hold all."""

    def __init__(self, survey: Survey) -> None:
        self.survey = survey
        self.problems = tuple(survey.problems)
        super().__init__(_summary(survey))


def _summary(survey: Survey) -> str:
    whole = [problem.what for problem in survey.problems if not problem.where]
    single = [problem for problem in survey.problems if problem.where]
    parts = []
    if single:
        num_bad = len({problem.where for problem in single})
        shown = ", ".join(str(problem) for problem in single[:SHOWN_PROBLEMS])
        if len(single) > SHOWN_PROBLEMS:
            shown += f", ... ({len(single) - SHOWN_PROBLEMS} more: `autoguidance data inspect` lists all)"
        files = "files" if survey.num_files != 1 else "file"
        parts.append(f"{num_bad} of {survey.num_files} {files} cannot be used: {shown}; mend or remove them")
        if any(problem.what.endswith(SIZE_MARK) for problem in single):
            parts[-1] += ", or give --resolution N, which centre-crops and resizes every image"
    return f"{printable(survey.name)}: " + "; and ".join(parts + whole)


SIZE_MARK = "others differ)"  # placeholder replaced below


def printable(text: str) -> str:
    """A file name as one line of a terminal: control characters and undecodable bytes are escaped."""
    return text if text.isprintable() else text.encode("unicode_escape", "backslashreplace").decode("ascii")
