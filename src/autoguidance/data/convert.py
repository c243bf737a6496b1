"""Any set of images to the form of the EDM2 data sets: square PNG files and dataset.json in one uncompressed zip.

Decoding, resizing and PNG compression take all cores: processes, because for small images most of the time is
Python's. Each works on parts of 256 images (parts.py), so memory stays at one image per process whatever the set's
size, and a killed command loses the parts that were in work.

Two things are known only when every image has been seen: whether the set is RGB (one colour image makes grey ones be
written as RGB), and the depth of 16-bit grey images (check.py). Each part notes what it met and under which
assumption it was written; the few that assumed wrongly are made again. All unusable images are found before the
command gives up, and named together.

Labels and class names go along. The result opens with `open_data` as the same set: same pixels, labels, class names
and fingerprint as the original opened at that resolution and transform.
"""

import hashlib
import io
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from autoguidance.data.check import GREY_DEPTHS, begin_survey, refuse_problems, size_problems
from autoguidance.data.decode import BadImageError, DecodeOptions, quiet_pillow
from autoguidance.data.listing import Listing
from autoguidance.data.open import MAX_BYTES_IN_MEMORY, check_resolution, list_data
from autoguidance.data.parts import Parts, check_target, label_document, member_name, open_parts
from autoguidance.data.source import Problem, ProgressCallback, Survey, parallel_workers, short_name
from autoguidance.data.transforms import DEFAULT_TRANSFORM, TRANSFORMS
from autoguidance.errors import UserError

# Level 6, the usual one, took 1.5 times as long for photographs of 64 pixels and saved 1 % of the bytes; for 512 pixels
# 4 times, saving 21 % (RSSCN7, enlarged).
_PNG_LEVEL = 1


@dataclass(frozen=True, kw_only=True)
class Converted:
    """What a call of `convert_data`, `encode_data` or `decode_data` left.

    Attributes:
        out: the set.
        num_images: in it.
        num_made: images that this call made; fewer where an earlier, killed one had made some.
        was_there: the whole set was there already, and nothing was done.
        notes: what the user may want to know, such as the depth of 16-bit images.
    """

    out: Path
    num_images: int
    num_made: int
    was_there: bool = False
    notes: tuple[str, ...] = ()


def convert_data(
    name: str | Path,
    out: Path | str,
    *,
    resolution: int | None = None,
    transform: str = DEFAULT_TRANSFORM,
    workers: int | None = None,
    progress: ProgressCallback | None = None,
) -> Converted:
    """Write a set of images as PNG files of one size, with their labels; the same call goes on after a kill.

    Args:
        name: any set that `open_data` takes.
        out: a .zip to make, or a folder (a name without suffix).
        resolution: pixels of every image in the result; None demands that all are square and of one size.
        transform: how images become square; a name in `TRANSFORMS`. Without effect where resolution is None.
        workers: processes; None is one per core. The result does not depend on it.
        progress: called with (images done, images in total, {}).

    Returns: what was made.

    Raises:
        DataError: some images cannot be used; it names all of them, and nothing is left of the attempt.
        UserError: the set cannot be read, `out` is something else already or cannot be written.
    """
    if transform not in TRANSFORMS:
        raise UserError(f"--transform {transform!r} is not known; choose one of {', '.join(TRANSFORMS)}")
    if workers is not None and workers < 1:
        raise UserError(f"--workers {workers}: choose at least 1")
    check_resolution(resolution)
    name, out = str(name), Path(out)
    listing = list_data(name, MAX_BYTES_IN_MEMORY)
    survey = begin_survey(listing)
    num_images = len(listing.files)
    made = {
        "source": short_name(listing.name),
        "num_images": num_images,
        "resolution": resolution,
        "transform": transform if resolution is not None else None,
    }
    if check_target(out, made):
        return Converted(out=out, num_images=num_images, num_made=0, was_there=True)
    options = DecodeOptions(resolution=resolution, transform=transform)
    settings = {**made, "content": _identity(listing, name), "png_level": _PNG_LEVEL}
    with open_parts(out, settings, num_images) as parts:
        work = _Conversion(listing, parts, workers or parallel_workers(), progress)
        work.run(options)
        work.collect(survey)
        if survey.problems:
            parts.discard()
            refuse_problems(survey, listing)
        members = [member_name(index, "img", "png") for index in range(num_images)]
        parts.finish(out, label_document(members, listing.class_idx, listing.class_names, made))
    return Converted(out=out, num_images=num_images, num_made=len(work.made), notes=tuple(survey.notes))


def _identity(listing: Listing, name: str) -> str:
    """Hash of what tells a changed set from the same one without reading it: names, labels, sizes and times of files."""
    digest = hashlib.sha256(json.dumps([listing.kind, list(listing.class_names)]).encode())
    path = Path(name).expanduser()
    digest.update(_stamp(path))
    for file in listing.files:
        digest.update(os.fsencode(file) + b"\0")
        if listing.kind == "folder":
            digest.update(_stamp(path / file))
    if listing.class_idx is not None:
        digest.update(listing.class_idx.tobytes())
    return digest.hexdigest()


def _stamp(path: Path) -> bytes:
    try:
        status = path.stat()
    except (OSError, ValueError):
        return b"?"  # no file of its own: digits, hf://
    return f"{status.st_size} {status.st_mtime_ns}".encode() if path.is_file() else b"folder"


@dataclass(frozen=True)
class _Task:
    """What a part is made with: beside the images, all that it depends on."""

    options: DecodeOptions
    channels: int | None  # None: as each file is

    @property
    def assumed(self) -> dict[str, Any]:
        return {**asdict(self.options), "channels": self.channels}


_Work = Callable[[int, _Task], dict[str, Any]]


class _Conversion:
    """The parts of one conversion, made as often as needed."""

    def __init__(self, listing: Listing, parts: Parts, workers: int, progress: ProgressCallback | None) -> None:
        self.listing = listing
        self.parts = parts
        self.workers = workers
        self.progress = progress
        self.records: dict[int, dict[str, Any]] = {}
        self.made: set[int] = set()  # images made by this call

    def run(self, options: DecodeOptions) -> None:
        """Make what is missing, then what has to be made again because of what other parts hold."""
        for number in range(len(self.parts)):
            if (record := self.parts.record(number)) is not None:
                self.records[number] = record
        self._make(_Task(options, None), [number for number in range(len(self.parts)) if number not in self.records])
        if any(record["problems"] for record in self.records.values()):
            return
        largest = max(record["largest_grey"] for record in self.records.values())
        depth = next(bits for bits in GREY_DEPTHS if largest < 1 << bits)
        final = DecodeOptions(resolution=options.resolution, grey_bits=depth, transform=options.transform)
        is_rgb = any(record["num_rgb"] for record in self.records.values())
        task = _Task(final, 3 if is_rgb else 1)

        def is_right(number: int, record: dict[str, Any]) -> bool:
            assumed = record["assumed"]
            depth_fits = not record["num_grey16"] or assumed["grey_bits"] == depth
            mixed = is_rgb and record["num_rgb"] < len(self.parts.images(number))
            return depth_fits and (not mixed or assumed["channels"] == 3)

        self._make(task, [number for number, record in self.records.items() if not is_right(number, record)])

    def _make(self, task: _Task, numbers: list[int]) -> None:
        if not numbers:
            return
        done = self.parts.num_images - sum(len(self.parts.images(number)) for number in numbers)
        with _workers(min(self.workers, len(numbers)), self.listing, self.parts) as (pool, work):
            futures = {pool.submit(work, number, task): number for number in sorted(numbers)}
            try:
                for future in as_completed(futures):
                    number = futures[future]
                    self.records[number] = future.result()
                    self.made.update(self.parts.images(number))
                    done += len(self.parts.images(number))
                    if self.progress is not None:
                        self.progress(done, self.parts.num_images, {})
            except BrokenProcessPool:
                raise UserError(
                    "a worker process of the conversion was ended from outside, perhaps for want of memory; "
                    "run the same command again, with fewer --workers"
                ) from None

    def collect(self, survey: Survey) -> None:
        """Put what all parts met into the survey."""
        sizes: dict[int, tuple[int, int]] = {}
        num_grey16 = num_animated = largest = bits = 0
        for number, record in sorted(self.records.items()):
            survey.formats += Counter(record["formats"])
            survey.modes += Counter(record["modes"])
            survey.problems += [
                Problem(where=self.listing.files[int(index)], what=what) for index, what in record["problems"]
            ]
            for index, size in zip(self.parts.images(number), record["sizes"], strict=True):
                if size is not None:
                    sizes[index] = (size[0], size[1])
            num_animated += record["num_animated"]
            if record["num_grey16"]:
                num_grey16 += record["num_grey16"]
                largest = max(largest, record["largest_grey"])
                bits = record["assumed"]["grey_bits"]
        survey.problems += size_problems(self.listing.files, sizes)
        if num_grey16:
            survey.notes.append(
                f"{num_grey16} 16-bit grey images hold {bits}-bit values (largest {largest}): "
                f"scaled by 255/{(1 << bits) - 1}"
            )
        if num_animated:
            survey.notes.append(f"{num_animated} files hold several images or frames: the first counts")


def _make_part(listing: Listing, parts: Parts, number: int, task: _Task) -> dict[str, Any]:
    """Decode a part's images, write them as PNG, and note what they were; runs in any process."""
    record: dict[str, Any] = {
        "assumed": task.assumed,
        "problems": [],
        "sizes": [],
        "formats": Counter(),
        "modes": Counter(),
        "num_rgb": 0,
        "num_grey16": 0,
        "largest_grey": 0,
        "num_animated": 0,
    }

    def members() -> Iterator[tuple[str, bytes]]:
        for index in parts.images(number):
            try:
                image = listing.load(index, task.options)
            except BadImageError as error:
                record["problems"].append([index, str(error)])
                record["sizes"].append(None)
                continue
            pixels = image.pixels
            record["sizes"].append([pixels.shape[1], pixels.shape[0]])
            record["formats"][image.format] += 1
            record["modes"][image.mode] += 1
            record["num_rgb"] += pixels.ndim == 3
            record["num_animated"] += image.is_animated
            if image.largest_value is not None:
                record["num_grey16"] += 1
                record["largest_grey"] = max(record["largest_grey"], image.largest_value)
            if task.channels == 3 and pixels.ndim == 2:
                pixels = np.repeat(pixels[:, :, None], 3, axis=2)
            yield member_name(index, "img", "png"), png_bytes(pixels)

    parts.write(number, members(), record)
    return record


def png_bytes(pixels: np.ndarray) -> bytes:
    """uint8 [H, W] or [H, W, 3] as a PNG file."""
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(stream, "PNG", compress_level=_PNG_LEVEL)
    return stream.getvalue()


# A listing reads through functions that cannot be sent to another process; forked ones have it from their parent,
# and with it, unpacked only once, the arrays that it holds.
_work_of_fork: _Work | None = None


def _work_in_fork(number: int, task: _Task) -> dict[str, Any]:
    assert _work_of_fork is not None
    return _work_of_fork(number, task)


def _begin_fork(parent: int) -> None:
    warnings.simplefilter("ignore")  # Pillow's, about odd metadata
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends the work

    def watch() -> None:  # a killed command must leave nothing running
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _workers(count: int, listing: Listing, parts: Parts) -> Iterator[tuple[Executor, _Work]]:
    """Where to run the work, and the function to submit there."""
    global _work_of_fork

    def work(number: int, task: _Task) -> dict[str, Any]:
        return _make_part(listing, parts, number, task)

    with quiet_pillow():
        if count == 1 or sys.platform != "linux":  # elsewhere a forked process may not use the system's libraries
            pool, submitted = ThreadPoolExecutor(count), work
        else:
            _work_of_fork = work
            context = multiprocessing.get_context("fork")
            pool = ProcessPoolExecutor(count, context, initializer=_begin_fork, initargs=(os.getpid(),))
            submitted = _work_in_fork
        try:
            yield pool, submitted
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            _work_of_fork = None
