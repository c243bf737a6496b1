"""Every image of a set decoded once before anything is built on it; all problems are collected, none is skipped.

Threads decode (Pillow's decoders release the interpreter lock) and the results are taken in order, so that pixels can
be hashed and kept as they come: in one uint8 array while that takes less than a limit, else not at all, and reading
decodes again.

Sizes: all images must be R x R. Where more than half agree, each other one is named; where they do not, the set as a
whole is the problem, and the remedy is `resolution`. Depth of 16-bit grey: files from 10- and 12-bit devices are
stored with 16 bits, and the set is decoded a second time when its largest value shows that; the depth is one of 8,
10, 12, 14, 16 bits so that two halves of one set rarely disagree.
"""

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np

from autoguidance.data.decode import BadImageError, Decoded, DecodeOptions, quiet_pillow
from autoguidance.data.listing import Listing
from autoguidance.data.source import (
    ArraySource,
    DataError,
    DecodedSource,
    Fingerprint,
    Problem,
    ProgressCallback,
    Survey,
    checksum,
    parallel_workers,
    planes,
    printable,
    short_name,
)
from autoguidance.errors import UserError

GREY_DEPTHS = (8, 10, 12, 14, 16)
_BYTES_PER_TASK = 16 << 20  # what a thread may decode ahead; a few tasks per core wait at a time
_IMAGES_PER_TASK = 64
# Below this, most of an image's time is Python's, and threads only contend for the interpreter lock: CIFAR-10's 50,000
# JPEGs took 14.2 s with one thread, 16.5 s with two, 23.3 s with four (2 cores).
_PIXELS_WORTH_THREADS = 64 * 64


def check_all(
    listing: Listing, *, resolution: int | None, max_bytes_in_memory: int, progress: ProgressCallback | None
) -> ArraySource | DecodedSource:
    """Decode and check every image of a listing.

    Args:
        listing: the images.
        resolution: crop and resize every image to this; None demands that all have one square size.
        max_bytes_in_memory: keep decoded images up to this size in total.
        progress: called with the images done and in total.

    Raises:
        DataError: anything is wrong with any image; it names all of them.
    """
    survey = begin_survey(listing)
    check = _Pass(listing, DecodeOptions(resolution=resolution), max_bytes_in_memory)
    with quiet_pillow():
        check.run(progress)
        depth = next(bits for bits in GREY_DEPTHS if check.largest_grey < 1 << bits)
        if check.num_grey16 and depth < 16 and not check.problems:
            check = _Pass(listing, DecodeOptions(resolution=resolution, grey_bits=depth), max_bytes_in_memory)
            check.run(progress)
    survey.formats, survey.modes = check.formats, check.modes
    if check.num_grey16:
        survey.notes.append(
            f"{check.num_grey16} 16-bit grey images hold {depth}-bit values (largest {check.largest_grey}): "
            f"scaled by 255/{(1 << depth) - 1}"
        )
    if check.num_animated:
        survey.notes.append(f"{check.num_animated} files hold several images or frames: the first counts")
    survey.problems += check.problems + size_problems(listing.files, check.sizes)
    refuse_problems(survey, listing)
    return check.source(survey)


def begin_survey(listing: Listing) -> Survey:
    """What is known before any file is read. Raises DataError where there is nothing to read."""
    survey = Survey(
        name=listing.name,
        kind=listing.kind,
        num_files=len({*listing.files, *(problem.where for problem in listing.problems)}),
        ignored=listing.ignored,
        class_counts=_class_counts(listing),
        notes=list(listing.notes),
        problems=list(listing.problems),
    )
    if not listing.files:
        if not survey.problems:
            survey.problems.append(Problem(where="", what=_no_images(survey)))
        raise DataError(survey)
    return survey


def refuse_problems(survey: Survey, listing: Listing) -> None:
    """Raise DataError with all problems in the order of the files, where there are any."""
    if survey.problems:
        order = {name: number for number, name in enumerate(listing.files)}
        survey.problems.sort(key=lambda problem: (not problem.where, order.get(problem.where, -1)))
        raise DataError(survey)


def _no_images(survey: Survey) -> str:
    others = ", ".join(f"{count} {suffix}" for suffix, count in survey.ignored.most_common(3))
    ignored = f" (ignored: {others})" if others else ""
    return f"holds no images{ignored}; give a folder or zip of PNG, JPEG, WebP, BMP, GIF or TIFF files"


def _class_counts(listing: Listing) -> dict[str, int]:
    if listing.class_idx is None:
        return {}
    counts = np.bincount(listing.class_idx[listing.class_idx >= 0], minlength=len(listing.class_names))
    return dict(zip(listing.class_names, counts.tolist(), strict=True))


def size_problems(files: Sequence[str], sizes: dict[int, tuple[int, int]]) -> list[Problem]:
    """Images, by index and (width, height), that keep the set from having one square size."""
    counts = Counter(sizes.values())
    if len(counts) == 0 or (len(counts) == 1 and _is_square(next(iter(counts)))):
        return []
    usual, num_usual = counts.most_common(1)[0]
    if _is_square(usual) and 2 * num_usual > len(sizes):
        return [
            Problem(where=files[index], what=f"{_text(size)}, others are {_text(usual)}", is_size=True)
            for index, size in sizes.items()
            if size != usual
        ]
    if len(counts) == 1:
        what = f"the images are {_text(usual)}, not square"
    else:
        smallest, largest = (pick(counts, key=lambda size: size[0] * size[1]) for pick in (min, max))
        what = f"{len(sizes)} images have {len(counts)} different sizes from {_text(smallest)} to {_text(largest)}"
    return [
        Problem(where="", what=f"{what}; give --resolution N, which centre-crops and resizes every image", is_size=True)
    ]


def _is_square(size: tuple[int, int]) -> bool:
    return size[0] == size[1]


def _text(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


class _Pass:
    """One decoding of the whole set: what was seen, and the pixels while they fit into memory."""

    def __init__(self, listing: Listing, options: DecodeOptions, max_bytes_in_memory: int) -> None:
        self.listing = listing
        self.options = options
        self.max_bytes = max_bytes_in_memory
        self.formats: Counter[str] = Counter()
        self.modes: Counter[str] = Counter()
        self.problems: list[Problem] = []
        self.sizes: dict[int, tuple[int, int]] = {}  # index -> (width, height) of each image that could be decoded
        self.num_animated = 0
        self.num_grey16 = 0
        self.largest_grey = 0
        self._images: np.ndarray | None = None
        self._fingerprint = Fingerprint()
        self._checksums = np.zeros(len(listing.files), dtype=np.uint32)

    def run(self, progress: ProgressCallback | None) -> None:
        total = len(self.listing.files)
        for index, result in self._in_order():
            if isinstance(result, BadImageError):
                self.problems.append(Problem(where=self.listing.files[index], what=str(result)))
            else:
                self._take(index, result)
            if progress is not None and ((index + 1) % _IMAGES_PER_TASK == 0 or index + 1 == total):
                progress(index + 1, total, {})

    def _in_order(self) -> Iterator[tuple[int, Decoded | BadImageError]]:
        def decode(start: int, stop: int) -> list[tuple[int, Decoded | BadImageError]]:
            results: list[tuple[int, Decoded | BadImageError]] = []
            for index in range(start, stop):
                try:
                    results.append((index, self.listing.load(index, self.options)))
                except BadImageError as error:
                    results.append((index, error))
            return results

        # The first image tells how large the others are likely to be: how many threads pay, and how many images each
        # may decode ahead.
        [(_, first)] = decode(0, 1)
        yield 0, first
        is_small = isinstance(first, Decoded) and first.num_source_pixels < _PIXELS_WORTH_THREADS
        num_workers = 1 if is_small else parallel_workers()
        num_bytes = first.pixels.nbytes if isinstance(first, Decoded) else _BYTES_PER_TASK
        step = min(max(_BYTES_PER_TASK // num_bytes, 1), _IMAGES_PER_TASK)
        total = len(self.listing.files)
        starts = iter(range(1, total, step))
        with ThreadPoolExecutor(num_workers) as pool:
            pending = deque(
                pool.submit(decode, start, min(start + step, total)) for start in islice(starts, num_workers + 2)
            )
            while pending:
                results = pending.popleft().result()
                start = next(starts, None)
                if start is not None:
                    pending.append(pool.submit(decode, start, min(start + step, total)))
                yield from results

    def _take(self, index: int, image: Decoded) -> None:
        self.formats[image.format] += 1
        self.modes[image.mode] += 1
        self.num_animated += image.is_animated
        if image.largest_value is not None:
            self.num_grey16 += 1
            self.largest_grey = max(self.largest_grey, image.largest_value)
        height, width = image.pixels.shape[:2]
        self.sizes[index] = (width, height)
        if (
            self.problems
            or self.listing.problems
            or height != width
            or self.sizes[index] != next(iter(self.sizes.values()))
        ):
            self._images = None  # there will be an error at the end; go on only to find the other problems
            return
        self._checksums[index] = checksum(image.pixels)
        self._fingerprint.add(image.pixels)
        self._keep(index, image.pixels)

    def _keep(self, index: int, pixels: np.ndarray) -> None:
        channels = self._fingerprint.channels
        total, resolution = len(self.listing.files), pixels.shape[0]
        if total * channels * resolution**2 > self.max_bytes:
            self._images = None
            return
        if index == 0:
            self._images = np.empty((total, channels, resolution, resolution), dtype=np.uint8)
        if self._images is None:
            return
        if self._images.shape[1] != channels:  # the first RGB image after grey ones
            grey = self._images
            self._images = np.empty((total, channels, resolution, resolution), dtype=np.uint8)
            self._images[:index] = grey[:index]
        self._images[index] = planes(pixels, channels)

    def source(self, survey: Survey) -> ArraySource | DecodedSource:
        """What was decoded, as a source. Only where there was no problem."""
        listing, options = self.listing, self.options
        resolution = self.sizes[0][0]
        fingerprint = self._fingerprint.finish(len(listing.files), resolution, listing.class_idx, listing.class_names)
        name = short_name(listing.name)
        if self._images is not None:
            return ArraySource(
                name=name,
                images=self._images,
                class_idx=listing.class_idx,
                class_names=listing.class_names,
                fingerprint=fingerprint,
                survey=survey,
            )

        def decode(index: int) -> np.ndarray:
            try:
                return listing.load(index, options).pixels
            except BadImageError as error:
                where = printable(f"{listing.name}: {listing.files[index]}")
                raise UserError(
                    f"{where} was readable when it was checked and no longer is ({error}); restore it"
                ) from None

        return DecodedSource(
            name=name,
            num_images=len(listing.files),
            resolution=resolution,
            channels=self._fingerprint.channels,
            class_idx=listing.class_idx,
            class_names=listing.class_names,
            fingerprint=fingerprint,
            survey=survey,
            decode=decode,
            checksums=self._checksums,
        )
