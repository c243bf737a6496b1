"""One name for every kind of image set: folder, zip, array file, Hugging Face data set, or the built-in digits.

A folder or zip may also hold latents of an image autoencoder instead of images (latents.py). Only who asks for them
gets them: measuring or converting them as if they were images would be wrong without a word.

What is not needed is not imported: Pillow, scikit-learn and `datasets` load with the first source that needs them.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Literal, overload

from autoguidance.data.source import ArraySource, DecodedSource, ProgressCallback
from autoguidance.errors import UserError

if TYPE_CHECKING:
    from autoguidance.data.latents import LatentSource
    from autoguidance.data.listing import Listing

DIGITS = "digits"
KINDS = "give a folder of images, a .zip, .npz or .npy file, hf://owner/name, or digits"
MAX_BYTES_IN_MEMORY = 2 << 30
MAX_RESOLUTION = 8192


@overload
def open_data(
    name: str | Path,
    *,
    resolution: int | None = ...,
    progress: ProgressCallback | None = ...,
    max_bytes_in_memory: int = ...,
    latents: Literal[False] = ...,
) -> ArraySource | DecodedSource: ...
@overload
def open_data(
    name: str | Path,
    *,
    resolution: int | None = ...,
    progress: ProgressCallback | None = ...,
    max_bytes_in_memory: int = ...,
    latents: Literal[True],
) -> "ArraySource | DecodedSource | LatentSource": ...
def open_data(
    name: str | Path,
    *,
    resolution: int | None = None,
    progress: ProgressCallback | None = None,
    max_bytes_in_memory: int = MAX_BYTES_IN_MEMORY,
    latents: bool = False,
) -> "ArraySource | DecodedSource | LatentSource":
    """Open a set of images and check all of them: every image is decoded once before this returns.

    Args:
        name: a folder (class = top-level directory, or dataset.json), a .zip of the same form, an .npz or .npy file
            of uint8 images, "hf://owner/name" or a local data set of that library (needs the `datasets` extra), or
            "digits".
        resolution: crop the largest centred square of every image and resize it to this many pixels; None demands
            that all images are square and of one size.
        progress: called with (images checked, images in total, {}).
        max_bytes_in_memory: keep the decoded images in memory up to this size; a larger set is decoded again on every
            read.
        latents: whether a set of latents, as `data encode` makes it, is welcome: then a `LatentSource` may come.

    Returns:
        An ImageSource, with a `survey` of what was found; a LatentSource for a set of latents.

    Raises:
        DataError: some files cannot be used; its text names the first, its `problems` all of them.
        UserError: the set as a whole cannot be read, or holds latents that were not asked for.
    """
    check_resolution(resolution)
    from autoguidance.data.check import check_all

    listing = list_data(str(name), max_bytes_in_memory, latents=latents)
    if listing.latents is not None:
        from autoguidance.data.latent_files import check_latents

        if resolution is not None:
            raise UserError(
                f"{name} holds latents, whose size is fixed; leave out --resolution, or encode other images"
            )
        return check_latents(listing, max_bytes_in_memory=max_bytes_in_memory, progress=progress)
    return check_all(listing, resolution=resolution, max_bytes_in_memory=max_bytes_in_memory, progress=progress)


def check_resolution(resolution: int | None) -> None:
    """Raise UserError where no image can have this many pixels."""
    if resolution is not None and not 1 <= resolution <= MAX_RESOLUTION:
        raise UserError(f"resolution {resolution} is out of range 1 .. {MAX_RESOLUTION}; choose e.g. 32 or 64")


def list_data(name: str, max_bytes_in_memory: int, *, latents: bool = False) -> "Listing":
    """The files of a set, unread; see `open_data`."""
    listing = _list(name, max_bytes_in_memory)
    if listing.latents is not None and not latents:
        raise UserError(
            f"{name} holds .npy files, which are latents of an autoencoder, not images; only `train` and `data inspect` take them: "
            f"make images of them by `autoguidance data decode {name} --out IMAGES`"
        )
    return listing


def _list(name: str, max_bytes_in_memory: int) -> "Listing":
    from autoguidance.data import arrays, digits, folder, huggingface, zipped

    if name == DIGITS:
        return digits.list_digits(name)
    if name.startswith(huggingface.PREFIX):
        return huggingface.list_huggingface(name)
    path = Path(name).expanduser()
    try:
        is_folder = path.is_dir()
        exists = path.exists()
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {name!r}: {error}; {KINDS}") from None
    if is_folder:
        if huggingface.is_saved_dataset(path):
            return huggingface.list_huggingface(str(path))
        return folder.list_folder(path, name)
    if not exists:
        hint = f" (a Hugging Face data set is {huggingface.PREFIX}{name})" if name.count("/") == 1 else ""
        raise UserError(f"{name} does not exist{hint}; {KINDS}")
    match path.suffix.lower():
        case ".zip":
            return zipped.list_zip(path, name)
        case ".npz":
            return arrays.list_npz(path, name, max_bytes_in_memory)
        case ".npy":
            return arrays.list_npy(path, name, max_bytes_in_memory)
        case ".parquet" | ".arrow":
            return huggingface.list_huggingface(str(path))
        case suffix:
            raise UserError(f"{name} is a file of an unknown kind ({suffix or 'no suffix'}); {KINDS}")
