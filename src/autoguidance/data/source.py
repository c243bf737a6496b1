"""What a set of images offers once it has been checked, and how a set that cannot be used says so.

Images x [N, C, R, R] are uint8 with C = 1 (grey) or 3 (RGB); labels class_idx [N] are int64 or absent. The
fingerprint

    sha256( bytes of x in order | labels as little-endian int64 | JSON of shape and class names )

depends on the content alone: the same images in the same order have the same one as a folder, a zip, an array file or
a Hugging Face dataset.
"""

import hashlib
import json
import os
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
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
        """The images with these indices (0 .. N-1), in this order; repeats are allowed. The caller owns the
        result."""
        ...


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One reason why a set cannot be used.

    Attributes:
        where: the file or row; "" is a problem of the set as a whole.
        what: the reason, without the name.
        is_size: True where cropping and resizing would mend it.
    """

    where: str
    what: str
    is_size: bool = False

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
            shown += f", ... and {len(single) - SHOWN_PROBLEMS} more (`autoguidance data inspect` lists all)"
        remedy = "mend or remove them"
        if any(problem.is_size for problem in single):
            remedy += ", or give --resolution N, which centre-crops and resizes every image"
        parts.append(f"{num_bad} of {survey.num_files} files cannot be used: {shown}; {remedy}")
    return f"{printable(survey.name)}: " + "; and ".join(parts + whole)


def printable(text: str) -> str:
    """A file name as one line of a terminal: control characters and undecodable bytes are escaped."""
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


class Fingerprint:
    """SHA-256 over images given one after another, when it is known only at the end whether the set is grey or
    RGB."""

    def __init__(self) -> None:
        self._grey = hashlib.sha256()
        self._rgb = hashlib.sha256()
        self.channels = 1

    def add(self, image: UInt8[np.ndarray, "H W"] | UInt8[np.ndarray, "H W 3"]) -> None:
        """Take the next image; a grey one counts as RGB as soon as any other is RGB."""
        if image.ndim == 3:
            self.channels = 3
            self._rgb.update(image.transpose(2, 0, 1).tobytes())
            return
        plane = image.tobytes()
        if self.channels == 1:
            self._grey.update(plane)
        for _ in range(3):
            self._rgb.update(plane)

    def finish(
        self, num_images: int, resolution: int, class_idx: Int64[np.ndarray, "N"] | None, class_names: tuple[str, ...]
    ) -> str:
        """The hexadecimal digest with labels and class names; see the module's text for the layout."""
        digest = self._grey if self.channels == 1 else self._rgb
        if class_idx is not None:
            digest.update(class_idx.astype("<i8").tobytes())
        shape = [num_images, self.channels, resolution, resolution]
        digest.update(json.dumps({"shape": shape, "class_names": list(class_names)}, ensure_ascii=True).encode())
        return digest.hexdigest()


def planes(image: UInt8[np.ndarray, "H W"] | UInt8[np.ndarray, "H W 3"], channels: int) -> UInt8[np.ndarray, "C H W"]:
    """A decoded image with its channels first; a grey one is repeated where the set is RGB."""
    if image.ndim == 2:
        return np.broadcast_to(image, (channels, *image.shape))
    return image.transpose(2, 0, 1)


def parallel_workers() -> int:
    """Threads for decoding: one per core that this process may use, at most 16."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 16)


def checked_indices(indices: Sequence[int] | np.ndarray | Tensor, num_images: int) -> np.ndarray:
    """Indices as int64. Raises UserError where one is outside 0 .. num_images - 1."""
    chosen = np.asarray(indices, dtype=np.int64).reshape(-1)
    if chosen.size and (chosen.min() < 0 or chosen.max() >= num_images):
        raise UserError(
            f"images {chosen.min()} .. {chosen.max()} asked for; the set has 0 .. {num_images - 1}: choose among them"
        )
    return chosen


@dataclass(frozen=True, kw_only=True)
class ArraySource:
    """A checked set whose images are in memory. Attributes: see `ImageSource`; `images` is uint8 [N, C, R, R]."""

    name: str
    images: UInt8[np.ndarray, "N C R R"]
    class_idx: Int64[np.ndarray, "N"] | None
    class_names: tuple[str, ...]
    fingerprint: str
    survey: Survey

    @property
    def num_images(self) -> int:
        return self.images.shape[0]

    @property
    def resolution(self) -> int:
        return self.images.shape[2]

    @property
    def channels(self) -> int:
        return self.images.shape[1]

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def read(self, indices: Sequence[int] | np.ndarray | Tensor) -> UInt8[Tensor, "n C R R"]:
        """The chosen images, copied. Raises UserError where an index is out of range."""
        return torch.from_numpy(self.images[checked_indices(indices, self.num_images)])


@dataclass(frozen=True, kw_only=True)
class DecodedSource:
    """A checked set too large for memory: images are decoded again on every read, and must not have changed since.

    Attributes: see `ImageSource`.
        decode: index -> uint8 [R, R] or [R, R, 3]; the same pixels as when the set was checked.
        checksums: uint32 [N], CRC-32 of what `decode` gave then.
    """

    name: str
    num_images: int
    resolution: int
    channels: int
    class_idx: Int64[np.ndarray, "N"] | None
    class_names: tuple[str, ...]
    fingerprint: str
    survey: Survey
    decode: Callable[[int], np.ndarray]
    checksums: np.ndarray

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def read(self, indices: Sequence[int] | np.ndarray | Tensor) -> UInt8[Tensor, "n C R R"]:
        """The chosen images. Raises UserError where an index is out of range or a file changed after the check."""
        chosen = checked_indices(indices, self.num_images)
        images = np.empty((len(chosen), self.channels, self.resolution, self.resolution), dtype=np.uint8)
        with warnings.catch_warnings(), ThreadPoolExecutor(parallel_workers()) as pool:
            warnings.simplefilter("ignore")  # Pillow's, about odd metadata
            for row, image in enumerate(pool.map(self._read_one, chosen.tolist())):
                images[row] = planes(image, self.channels)
        return torch.from_numpy(images)

    def _read_one(self, index: int) -> np.ndarray:
        image = self.decode(index)
        if checksum(image) != self.checksums[index]:
            raise UserError(
                f"{printable(self.survey.name)}: image {index} changed after it was checked; restore it or start again"
            )
        return image


def short_name(name: str) -> str:
    """A set's name without folders and suffix, for tables: "data/cats.zip" is "cats"."""
    if name.startswith("hf://"):
        return name.removeprefix("hf://")
    path = Path(name)
    return (path.name if path.is_dir() else path.stem) or path.resolve().name


def checksum(image: np.ndarray) -> int:
    """CRC-32 of an image's pixels in the order in which they were decoded."""
    return zlib.crc32(image.tobytes())
