"""Which images a set has and what class each is, before any of them is decoded: the rules that folders and zips
share.

Given the names of all files below a root, e.g. "cat/1.png": images are taken in the order of their sorted names.
Their class is
* what dataset.json says, {"labels": [["00000/img00000000.png", 6], ...]}, where the root has one; null means
  unlabelled; an optional "class_names" list names the classes, which are "0", "1", ... otherwise;
* else the top-level directory, sorted: class 0 is the first; images that lie directly in the root are unlabelled.
Files of other kinds are ignored and counted; pictures of a kind that cannot be read are problems, because leaving
them out silently would change the set. A set without any image but with .npy files is one of latents (latent_files.py).
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import Int64

from autoguidance.data.decode import Decoded, DecodeOptions, decode_image
from autoguidance.data.source import Problem
from autoguidance.errors import UserError

IMAGE_SUFFIXES = frozenset(["png", "jpg", "jpeg", "jfif", "webp", "bmp", "gif", "tif", "tiff"])
FOREIGN_SUFFIXES = frozenset(
    [
        "avif",
        "heic",
        "heif",
        "jp2",
        "jxl",
        "svg",
        "psd",
        "tga",
        "ppm",
        "pgm",
        "pbm",
        "pnm",
        "exr",
        "hdr",
        "dng",
        "cr2",
        "nef",
        "arw",
        "dcm",
    ]
)
LATENT_SUFFIX = "npy"
LABEL_FILE = "dataset.json"
MAX_LABEL = 65535  # one-hot labels of more classes would not fit; a larger number is an id, not a class


@dataclass(frozen=True, kw_only=True)
class LatentFiles:
    """What a set of latents has in place of images.

    Attributes:
        read: a file's content by index; raises BadImageError.
        encoder: what dataset.json says of the autoencoder; None where it says nothing.
    """

    read: Callable[[int], bytes]
    encoder: Mapping[str, Any] | None


@dataclass(frozen=True, kw_only=True)
class Listing:
    """All images of a set by name, not yet decoded.

    Attributes:
        name: the set as the user named it.
        kind: see Survey.kind.
        files: a name for each image, in the set's order.
        load: decodes the image with this index; raises BadImageError.
        class_idx: int64 per image or None; -1 where a problem says that the label is unusable.
        class_names: () for an unlabelled set.
        problems, ignored, notes: see Survey.
        latents: set where the files hold latents; `load` is then of no use.
    """

    name: str
    kind: str
    files: Sequence[str]
    load: Callable[[int, DecodeOptions], Decoded]
    class_idx: Int64[np.ndarray, "N"] | None = None
    class_names: tuple[str, ...] = ()
    problems: Sequence[Problem] = ()
    ignored: Counter[str] = field(default_factory=Counter)
    notes: Sequence[str] = ()
    latents: LatentFiles | None = None


def sort_out(names: Iterable[str]) -> tuple[list[str], list[Problem], Counter[str]]:
    """Sorted names of the images among `names` (relative, with "/"), problems, and what is ignored and counted.

    Where there are no images but .npy files, those are what the set holds.
    """
    images: list[str] = []
    arrays: list[str] = []
    problems: list[Problem] = []
    ignored: Counter[str] = Counter()
    for name in names:
        path = PurePosixPath(name)
        suffix = path.suffix[1:].lower()
        if any(part.startswith(".") or part == "__MACOSX" for part in path.parts):
            ignored["hidden"] += 1
        elif suffix in IMAGE_SUFFIXES:
            images.append(name)
        elif suffix in FOREIGN_SUFFIXES:
            problems.append(Problem(where=name, what=f".{suffix} files cannot be read; convert it to PNG"))
        elif suffix == LATENT_SUFFIX:
            arrays.append(name)
        elif name != LABEL_FILE:
            ignored[suffix or "no suffix"] += 1
    if arrays and images:
        ignored[LATENT_SUFFIX] += len(arrays)
    return sorted(images or arrays), problems, ignored


def are_latents(names: Sequence[str]) -> bool:
    """Whether what `sort_out` found is a set of latents."""
    return bool(names) and PurePosixPath(names[0]).suffix[1:].lower() == LATENT_SUFFIX


def list_files(
    *,
    name: str,
    kind: str,
    files: Sequence[str],
    read: Callable[[int], bytes],
    labels: "Labels",
    problems: Sequence[Problem],
    ignored: Counter[str],
) -> Listing:
    """The listing of files that are read whole and then decoded; see `Listing`."""

    def load(index: int, options: DecodeOptions) -> Decoded:
        return decode_image(read(index), options)

    return Listing(
        name=name,
        kind=kind,
        files=files,
        load=load,
        class_idx=labels.class_idx,
        class_names=labels.class_names,
        problems=[*problems, *labels.problems],
        ignored=ignored,
        notes=labels.notes,
        latents=LatentFiles(read=read, encoder=labels.encoder) if are_latents(files) else None,
    )


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Classes of a list of images; class_idx is None for an unlabelled set, -1 where a problem names the image.

    `encoder` is what dataset.json says of the autoencoder whose latents the set holds.
    """

    class_idx: Int64[np.ndarray, "N"] | None = None
    class_names: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()
    encoder: Mapping[str, Any] | None = None


def labels_from_folders(images: Sequence[str]) -> Labels:
    """The class of "cat/1.png" is "cat"; a set without directories is unlabelled; a mixture of both is a problem."""
    tops = [name.split("/", 1)[0] if "/" in name else None for name in images]
    class_names = tuple(sorted({top for top in tops if top is not None}))
    if not class_names:
        return Labels()
    index = {name: number for number, name in enumerate(class_names)}
    class_idx = np.array([-1 if top is None else index[top] for top in tops], dtype=np.int64)
    problems = tuple(
        Problem(where=name, what="missing label: it lies beside the class folders, not in one")
        for name, top in zip(images, tops, strict=True)
        if top is None
    )
    notes: list[str] = []
    if len(class_names) == 1:
        below = sorted({name.split("/")[1] for name in images if name.count("/") >= 2})
        if len(below) > 1:
            notes.append(
                f"all images are in one class, the top-level folder {class_names[0]!r}; its {len(below)} sub-folders "
                f"({', '.join(below[:3])}, ...) do not count: name the folder above them if they are the classes"
            )
    return Labels(class_idx=class_idx, class_names=class_names, problems=problems, notes=tuple(notes))


def labels_from_json(content: bytes, images: Sequence[str], where: str) -> Labels:
    """Labels of the images by dataset.json.

    Args:
        content: the file.
        images: names of the images that exist.
        where: the file's name for messages.

    Raises:
        UserError: it is not JSON or not of the expected form as a whole. A wrong entry is a problem instead.
    """
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{where} is not valid JSON ({error}); mend it, or remove it to take top-level folders as classes"
        ) from None
    if not isinstance(document, dict) or "labels" not in document:
        raise UserError(
            f'{where} has no "labels"; it must be {{"labels": [["name.png", 6], ...]}} or {{"labels": null}}'
        )
    encoder = document.get("encoder")
    if encoder is not None and not isinstance(encoder, dict):
        raise UserError(f'{where}: "encoder" is not an object; mend or remove it')
    if document["labels"] is None:
        return Labels(encoder=encoder)
    if not isinstance(document["labels"], list):
        raise UserError(f'{where}: "labels" is not a list; it must be [["name.png", 6], ...] or null')
    names = document.get("class_names")
    if names is not None and not (isinstance(names, list) and names and all(isinstance(name, str) for name in names)):
        raise UserError(f'{where}: "class_names" is not a list of names; mend or remove it')

    labels: dict[str, Any] = {}
    problems: list[Problem] = []
    for number, entry in enumerate(document["labels"]):
        if not (isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str)):
            problems.append(Problem(where=f"{LABEL_FILE} labels[{number}]", what='not a pair ["name.png", class]'))
        elif entry[0] in labels:
            problems.append(Problem(where=entry[0], what=f"listed twice in {LABEL_FILE}"))
        else:
            labels[entry[0]] = entry[1]
    existing = set(images)
    problems += [
        Problem(where=name, what=f"listed in {LABEL_FILE} but absent") for name in labels if name not in existing
    ]
    missing = {name for name in images if name not in labels}
    problems += [Problem(where=name, what=f"missing label: not listed in {LABEL_FILE}") for name in sorted(missing)]
    found = [0 if name in missing else labels[name] for name in images]
    checked = check_labels(found, images, None if names is None else tuple(names))
    return Labels(
        class_idx=checked.class_idx,
        class_names=checked.class_names,
        problems=(*problems, *checked.problems),
        encoder=encoder,
    )


def check_labels(values: Sequence[Any], names: Sequence[str], class_names: tuple[str, ...] | None) -> Labels:
    """Labels as int64 with a problem for each that is no class number: not an integer, negative, too large.

    Args:
        values: one per image, as read.
        names: the images' names, for messages.
        class_names: names of all classes, which bound the range; None counts up to the largest label and names them
            "0", "1", ...
    """
    limit = MAX_LABEL if class_names is None else len(class_names) - 1
    class_idx = np.full(len(values), -1, dtype=np.int64)
    problems: list[Problem] = []
    for row, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            what = "missing label" if value is None else f"label {str(value)[:20]!r} is not an integer"
            problems.append(Problem(where=names[row], what=what))
        elif not 0 <= value <= limit:
            problems.append(Problem(where=names[row], what=f"label {value} is out of range 0 .. {limit}"))
        else:
            class_idx[row] = value
    if class_names is None:
        class_names = tuple(str(number) for number in range(int(class_idx.max(initial=0)) + 1))
    return Labels(class_idx=class_idx, class_names=class_names, problems=tuple(problems))
