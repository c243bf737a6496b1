"""Images in numpy files: .npy with the images alone, .npz with images and labels.

Images are uint8, [N, H, W], [N, H, W, C] or [N, C, H, W] with C = 1, 3, or 4 (the fourth is opacity, laid over
white). Other types are refused by name: the range of a float is not known, and an object array is a pickle, which
could run code.

An .npz is a zip of .npy members. Here the sizes that a member's two headers declare are compared before memory is
taken for it, and no more than that is read. What does not fit into the memory limit is mapped from the disk: an .npy
file itself, an .npz member from an unpacked temporary file that vanishes with the process.
"""

import math
import shutil
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import cast

import numpy as np
from jaxtyping import UInt8

from autoguidance.data.decode import BadImageError, Decoded, DecodeOptions
from autoguidance.data.listing import Labels, Listing, check_labels
from autoguidance.errors import UserError

IMAGE_KEYS = ("images", "x")
LABEL_KEYS = ("labels", "class_idx", "y")
_CHANNELS = (1, 3, 4)


def list_npy(path: Path, name: str, max_bytes_in_memory: int) -> Listing:
    """The images of an .npy file, unlabelled. Raises UserError where it is damaged or holds something else."""
    try:
        array = np.lib.format.open_memmap(path, mode="r")  # numpy.load would take what is no array for a pickle
    except OSError as error:
        raise UserError(f"cannot read {name}: {error.strerror or error}; check the path and its permissions") from None
    except (ValueError, EOFError, OverflowError) as error:
        if "Python objects" in str(error):
            raise UserError(f"{name} holds {_PICKLE}") from None
        raise UserError(f"{name} is not a whole .npy file ({str(error).rstrip('.')}); save it again") from None
    return list_array(name, np.array(array) if array.nbytes <= max_bytes_in_memory else array, None)


def list_npz(path: Path, name: str, max_bytes_in_memory: int) -> Listing:
    """The images and labels of an .npz file; "class_names" in it names the classes.

    Raises UserError where it is damaged, holds no images, or they are of another type.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            keys = {member.removesuffix(".npy") for member in archive.namelist()}
            image_key = _only_key(IMAGE_KEYS, keys, name)
            label_key = _only_key(LABEL_KEYS, keys, name)
            if image_key is None:
                raise UserError(
                    f"{name} holds no images: it has {', '.join(sorted(keys)) or 'nothing'}; "
                    "save them as numpy.savez(..., images=x, labels=y)"
                )
            images = _read_member(archive, image_key, name, max_bytes_in_memory)
            labels = None if label_key is None else _read_member(archive, label_key, name, max_bytes_in_memory)
            class_names = (
                _read_member(archive, "class_names", name, max_bytes_in_memory) if "class_names" in keys else None
            )
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise UserError(f"{name} is not a whole .npz file ({error}); save it again") from None
    except OSError as error:
        raise UserError(
            f"cannot read {name}: {error.strerror or error}; check the path, its permissions and the free disk space"
        ) from None
    if class_names is not None and (class_names.ndim != 1 or class_names.dtype.kind != "U"):
        raise UserError(f"{name}: class_names is not a list of texts; mend or remove it")
    return list_array(name, images, labels, None if class_names is None else tuple(class_names.tolist()))


_PICKLE = "Python objects (a pickle), which could run code and is not read; save a uint8 array"


def _only_key(wanted: tuple[str, ...], keys: set[str], name: str) -> str | None:
    found = [key for key in wanted if key in keys]
    if len(found) > 1:
        raise UserError(f"{name} holds both {found[0]!r} and {found[1]!r}; remove one of them")
    return found[0] if found else None


def _read_member(archive: zipfile.ZipFile, key: str, name: str, max_bytes_in_memory: int) -> np.ndarray:
    info = archive.getinfo(f"{key}.npy")
    with cast(zipfile.ZipExtFile, archive.open(info)) as file:
        try:
            version = np.lib.format.read_magic(file)
            read_header = (
                np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            )
            shape, is_fortran, dtype = read_header(file)
        except ValueError as error:
            raise UserError(
                f"{name}: {key} is not a numpy array ({str(error).splitlines()[0]}); save it again"
            ) from None
        if dtype.hasobject:
            raise UserError(f"{name}: {key} holds {_PICKLE}")
        num_bytes = math.prod(shape) * dtype.itemsize
        if num_bytes != info.file_size - file.tell():
            raise UserError(
                f"{name}: {key} declares {num_bytes:,} bytes but has {info.file_size - file.tell():,}; save it again"
            )
        buffer = _buffer(num_bytes, max_bytes_in_memory, name)
        view, position = buffer.data, 0
        while position < num_bytes:
            count = file.readinto(view[position : position + (1 << 24)])
            if not count:
                raise EOFError(f"{key} ends early")
            position += count
        file.read(1)  # at its end the member's checksum is compared
    return buffer[:num_bytes].view(dtype).reshape(shape, order="F" if is_fortran else "C")


def _buffer(num_bytes: int, max_bytes_in_memory: int, name: str) -> np.ndarray:
    if num_bytes <= max_bytes_in_memory:
        return np.empty(num_bytes, dtype=np.uint8)
    free = shutil.disk_usage(tempfile.gettempdir()).free
    if num_bytes > free:
        raise UserError(
            f"{name} unpacks to {num_bytes:,} bytes and {tempfile.gettempdir()} has {free:,} free; "
            "save the images as .npy, which needs no unpacking"
        )
    with tempfile.TemporaryFile() as file:  # the mapping keeps the unnamed file until it is let go
        return np.memmap(file, dtype=np.uint8, shape=(num_bytes,), mode="w+")


def list_array(
    name: str,
    images: np.ndarray,
    labels: np.ndarray | None,
    class_names: tuple[str, ...] | None = None,
    kind: str = "array",
) -> Listing:
    """A listing of images that are in memory or mapped from the disk.

    Args:
        name: for messages.
        images: uint8 [N, H, W], [N, H, W, C] or [N, C, H, W].
        labels: integers [N]; None is unlabelled.
        class_names: names of all classes; None names them "0", "1", ... up to the largest label.
        kind: see Survey.

    Raises:
        UserError: wrong type or shape of images or labels as a whole.
    """
    if images.dtype != np.uint8:
        raise UserError(
            f"{name}: images are {images.dtype}, not uint8; "
            "scale them to 0 .. 255 and save them with .astype(numpy.uint8)"
        )
    channels_last = _channels_last(images, name)
    num_images = len(images)
    files = [f"image {index}" for index in range(num_images)]
    checked = Labels() if labels is None else _check_label_array(labels, files, name, class_names)

    def load(index: int, options: DecodeOptions) -> Decoded:
        image = images[index] if channels_last or images.ndim == 3 else images[index].transpose(1, 2, 0)
        if 0 in image.shape:
            raise BadImageError("no pixels")
        pixels = options.square(_flatten(image))
        mode = {2: "L"}.get(image.ndim) or {1: "L", 3: "RGB", 4: "RGBA"}[image.shape[2]]
        num_source_pixels = images[index].size // (1 if image.ndim == 2 else image.shape[2])
        return Decoded(pixels=pixels, format="array", mode=mode, num_source_pixels=num_source_pixels)

    return Listing(
        name=name,
        kind=kind,
        files=files,
        load=load,
        class_idx=checked.class_idx,
        class_names=checked.class_names,
        problems=checked.problems,
    )


def _channels_last(images: np.ndarray, name: str) -> bool:
    shape = images.shape
    what = f"{name}: images have shape {list(shape)}"
    if images.ndim == 3:
        return False
    if images.ndim != 4:
        raise UserError(f"{what}; they must be [N, H, W], [N, H, W, C] or [N, C, H, W]")
    last, first = shape[3] in _CHANNELS, shape[1] in _CHANNELS
    if last and first:  # both could be: square images decide
        last, first = shape[1] == shape[2], shape[2] == shape[3]
        if last == first and shape[1:] != (1, 1, 1):
            raise UserError(f"{what}, in which channels and rows cannot be told apart; save [N, H, W] for grey images")
    if not (last or first):
        raise UserError(f"{what} without 1, 3 or 4 channels; they must be [N, H, W], [N, H, W, C] or [N, C, H, W]")
    return last


def _flatten(image: UInt8[np.ndarray, "H W"] | UInt8[np.ndarray, "H W C"]) -> np.ndarray:
    if image.ndim == 2 or image.shape[2] == 3:
        return image
    if image.shape[2] == 1:
        return image[..., 0]
    colour, opacity = image[..., :3].astype(np.uint16), image[..., 3:].astype(np.uint16)
    return ((colour * opacity + 255 * (255 - opacity) + 127) // 255).astype(np.uint8)  # over white, as in decode.py


def _check_label_array(labels: np.ndarray, files: list[str], name: str, class_names: tuple[str, ...] | None) -> Labels:
    if labels.dtype.kind not in "iu":
        raise UserError(f"{name}: labels are {labels.dtype}, not integers; save one class number per image")
    if labels.shape != (len(files),):
        raise UserError(
            f"{name}: labels have shape {list(labels.shape)} for {len(files)} images; save one class number per image"
        )
    if len(labels) and (labels == -1).all():  # what `generate --format npz` writes for a model without classes
        return Labels()
    return check_labels(labels.tolist(), files, class_names)
