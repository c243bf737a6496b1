"""Published files become ours: networks to model files, reference statistics to statistics files.

A name is fetched once: the pickle goes into the cache, is read (never run), written as safetensors beside its SHA-256,
and removed. The next use verifies the hash.
"""

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from autoguidance.errors import UserError
from autoguidance.evaluate import Statistics
from autoguidance.interop.published_names import PUBLISHED_LICENCE
from autoguidance.models import save_model
from autoguidance.storage import Manifest, alone, cache_folder, make_folder, sha256_file
from autoguidance.zoo.download import ProgressCallback, fetch
from autoguidance.zoo.published import file_url

if TYPE_CHECKING:
    from autoguidance.interop.edm2 import PublishedReference

_FOLDER = "edm2"


def import_network(source: Path | str, out: Path | str, origin: str | None = None) -> Path:
    """Write a published network pickle as a model file (weights as stored, float16).

    Args:
        source: the pickle.
        out: a path ending in .safetensors.
        origin: where it came from, for the provenance; None: the file's name.

    Returns: out.
    Raises: UserError where the file is refused or `out` cannot be written.
    """
    out = Path(out)
    if out.suffix != ".safetensors":
        raise UserError(f"--out {out}: a network becomes a .safetensors file; give such a name")
    from autoguidance.interop.edm2 import read_network  # costs a second, which `import autoguidance` need not take

    info, weights = read_network(source)
    provenance = {**info.provenance, "source": origin or Path(source).name, "source_sha256": sha256_file(source)}
    save_model(out, weights, replace(info, provenance=provenance), dtype=None)
    return out


def import_reference(source: Path | str, out: Path | str, origin: str | None = None) -> list[Path]:
    """Write published reference statistics as statistics files.

    Args:
        source: `.pkl` or `.npz`.
        out: a path ending in .npz: the first feature network's statistics (Inception's where there are several); the others' go
            beside it, named NAME.FEATURES.npz.
        origin: where they came from; None: the file's name.

    Returns: the files written.
    Raises: UserError where the file is refused or cannot be written.
    """
    out = Path(out)
    if out.suffix != ".npz":
        raise UserError(f"--out {out}: reference statistics become an .npz file; give such a name")
    from autoguidance.interop.edm2 import read_reference

    digest = sha256_file(source)
    paths = []
    for index, found in enumerate(read_reference(source)):
        path = out if index == 0 else out.with_name(f"{out.stem}.{found.features}.npz")
        _statistics(found, origin or Path(source).name, digest).save(path)
        paths.append(path)
    return paths


def _statistics(found: "PublishedReference", origin: str, digest: str) -> Statistics:
    record = {"features": found.features, "source": origin, "source_sha256": digest, "licence": PUBLISHED_LICENCE}
    return Statistics(found.mean, found.covariance, found.num_images, record)


def cached_path(name: str) -> Path:
    """Where a published network lies in the cache, whether it is there or not."""
    return cache_folder() / _FOLDER / f"{name}.safetensors"


def is_cached(name: str) -> bool:
    """Whether a published network is in the cache."""
    path = cached_path(name)
    return path.exists() and path.name in Manifest(path.parent).names()


def published_network(name: str, progress: ProgressCallback | None = None) -> Path:
    """The model file of a published network, fetched and imported on first use.

    Args:
        name: e.g. edm2-img512-s-2147483-0.130.
        progress: called with (bytes done, bytes in all, {}).

    Raises: UserError where it cannot be fetched, is refused, or the cached file has changed.
    """
    url = file_url(name)
    path = cached_path(name)
    folder = make_folder(path.parent)
    with alone(folder / f".{name}.lock", None):
        if is_cached(name):
            try:
                return Manifest(folder).verify(path.name)
            except UserError as error:
                raise UserError(f"{error} or remove it: it is then fetched again") from None
        pickle = fetch(url, folder / f"{name}.pkl", progress=progress)
        try:
            import_network(pickle, path, origin=url)
        finally:
            pickle.unlink(missing_ok=True)  # refused or imported: either way it is of no more use
        with alone(folder / ".manifest.lock", None):
            Manifest(folder).commit(path)
    return path


def fetched_file(url: str, progress: ProgressCallback | None = None) -> Path:
    """A file from an address, in the cache: fetched on first use. Raises UserError as `fetch` does."""
    from hashlib import sha256

    name = os.path.basename(url.split("?")[0]) or "file"  # noqa: PTH119 (of an address)
    folder = make_folder(cache_folder() / "files" / sha256(url.encode()).hexdigest()[:16])
    with alone(folder / ".lock", None):
        return fetch(url, folder / name, progress=progress)
