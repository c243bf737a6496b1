"""Sets of latents on the disk: one .npy file per image, in a folder or zip with dataset.json.

A file holds m [2 C, h, h], floats, the moments (latents.py), and is named `00000/img-mean-std-00000000.npy`. Labels are
those of listing.py; dataset.json may say under "encoder" which VAE the latents are of and how they are scaled, as
`data encode` writes it; without it they are those of the published one.

All files are checked before anything is built on them, as images are: an object array (a pickle, which could run
code), another type or shape, a header that declares more than is there, values that are not finite, negative
deviations; every problem is named. The fingerprint

    sha256( m as little-endian float32 in order | labels as little-endian int64 | JSON of shape and class names )

depends on the content alone.
"""

import hashlib
import io
import json
import math

import numpy as np
from jaxtyping import Float32

from autoguidance.data.check import begin_survey, refuse_problems, size_problems
from autoguidance.data.decode import BadImageError
from autoguidance.data.encoders import make_encoder
from autoguidance.data.latents import LatentSource
from autoguidance.data.listing import Listing
from autoguidance.data.source import Problem, ProgressCallback, checksum, printable, short_name
from autoguidance.errors import UserError

_FLOAT_BYTES = (2, 4, 8)
_REPORT_EVERY = 64


def parse_moments(content: bytes) -> Float32[np.ndarray, "2C h w"]:
    """One .npy file's moments. Raises BadImageError where it is anything else, without running or trusting it."""
    if not content:
        raise BadImageError("empty file")
    stream = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(stream)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, is_fortran, dtype = read_header(stream)
    except (ValueError, EOFError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
        raise BadImageError(f"not a numpy array ({str(error).splitlines()[0][:80]})") from None
    if dtype.hasobject:
        raise BadImageError("Python objects (a pickle), which could run code and is not read; save floats")
    if dtype.kind != "f" or dtype.itemsize not in _FLOAT_BYTES:
        raise BadImageError(f"{dtype} numbers, not float32")
    if len(shape) != 3 or shape[0] % 2 or 0 in shape:
        raise BadImageError(f"shape {list(shape)}, not [mean and std of each channel, height, width]")
    num_bytes, found = math.prod(shape) * dtype.itemsize, len(content) - stream.tell()
    if num_bytes != found:
        raise BadImageError(f"declares {num_bytes:,} bytes of numbers, {found:,} are there")
    values = np.frombuffer(content, dtype, offset=stream.tell()).reshape(shape, order="F" if is_fortran else "C")
    with np.errstate(over="ignore"):  # becomes infinite, and is refused as that
        moments = np.ascontiguousarray(values, dtype=np.float32)
    if not np.isfinite(moments).all():
        raise BadImageError("values that are not finite")
    if (moments[shape[0] // 2 :] < 0).any():
        raise BadImageError("negative standard deviations")
    return moments


def npy_bytes(moments: Float32[np.ndarray, "2C h w"]) -> bytes:
    """Moments as a .npy file."""
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.ascontiguousarray(moments, dtype="<f4"), allow_pickle=False)
    return stream.getvalue()


def check_latents(
    listing: Listing, *, max_bytes_in_memory: int, progress: ProgressCallback | None = None
) -> LatentSource:
    """Read and check all latents of a listing.

    Args:
        listing: with `latents`.
        max_bytes_in_memory: keep all moments in memory up to this size.
        progress: called with (files checked, files in total, {}).

    Raises:
        DataError: some files cannot be used; it names all of them.
        UserError: the encoder that dataset.json names cannot be.
    """
    assert listing.latents is not None
    read = listing.latents.read

    def load_again(index: int) -> np.ndarray:
        try:
            return parse_moments(read(index))
        except BadImageError as error:
            where = printable(f"{listing.name}: {listing.files[index]}")
            raise UserError(
                f"{where} was readable when it was checked and no longer is ({error}); restore it"
            ) from None

    survey = begin_survey(listing)
    survey.formats["NPY"] = total = len(listing.files)
    digest = hashlib.sha256()
    checksums = np.zeros(total, dtype=np.uint32)
    moments: np.ndarray | None = None
    shapes: dict[int, tuple[int, int, int]] = {}
    for index in range(total):
        try:
            found = parse_moments(read(index))
        except BadImageError as error:
            survey.problems.append(Problem(where=listing.files[index], what=str(error)))
        else:
            shapes[index] = (found.shape[0], found.shape[1], found.shape[2])
            digest.update(found.astype("<f4", copy=False).tobytes())
            checksums[index] = checksum(found)
            if index == 0 and total * found.nbytes <= max_bytes_in_memory:
                moments = np.empty((total, *found.shape), dtype=np.float32)
            if moments is not None and moments.shape[1:] == found.shape:
                moments[index] = found
        if progress is not None and ((index + 1) % _REPORT_EVERY == 0 or index + 1 == total):
            progress(index + 1, total, {})
    survey.problems += _shape_problems(listing, shapes)
    refuse_problems(survey, listing)
    channels, width = shapes[0][0] // 2, shapes[0][1]
    encoder = make_encoder(
        dict(listing.latents.encoder or {"name": "vae"}), img_channels=channels, img_resolution=width
    )
    if encoder.config["name"] != "vae":
        raise UserError(
            f"{listing.name}: dataset.json names the encoder {encoder.config['name']!r}; latents need 'vae'"
        )
    if listing.class_idx is not None:
        digest.update(listing.class_idx.astype("<i8").tobytes())
    shape = [total, 2 * channels, width, width]
    digest.update(json.dumps({"shape": shape, "class_names": list(listing.class_names)}, ensure_ascii=True).encode())
    return LatentSource(
        name=short_name(listing.name),
        num_images=total,
        latent_channels=channels,
        latent_resolution=width,
        encoder=encoder.config,
        class_idx=listing.class_idx,
        class_names=listing.class_names,
        fingerprint=digest.hexdigest(),
        survey=survey,
        load=load_again,
        checksums=checksums,
        moments=moments,
    )


def _shape_problems(listing: Listing, shapes: dict[int, tuple[int, int, int]]) -> list[Problem]:
    sizes = {index: (shape[2], shape[1]) for index, shape in shapes.items()}
    problems = [
        Problem(where=problem.where, what=problem.what.replace("images", "latents").partition("; give --res")[0])
        for problem in size_problems(listing.files, sizes)
    ]
    counts = sorted({shape[0] for shape in shapes.values()})
    if len(counts) > 1:
        problems.append(
            Problem(where="", what=f"files of {' and '.join(map(str, counts))} channels; encode the set again")
        )
    return problems
