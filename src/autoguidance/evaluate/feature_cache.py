"""What was computed from images once is not computed again: a folder of results, keyed by what they are made from.

A key is a JSON-like description of everything that determines the content: the images (the fingerprint of a set; or
models, solver, seeds and classes), the network's hash, the kind of device. Its SHA-256 names the file, and the file
holds the key itself, so a file is used only for exactly what it was made from.

Entries are .npz files, written under a temporary name and renamed: of several writers of one entry the last wins, and
a reader sees a whole one. A damaged entry (torn, flipped bits: every member has a CRC-32) counts as absent and is
written anew. Where the folder cannot be written, nothing is kept and the work goes on. Nothing is ever removed: the
folder grows (33 MB for statistics of 2048 features, 400 MB for 50,000 feature vectors) until somebody empties it, which
is safe at any time.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from autoguidance.errors import UserError
from autoguidance.evaluate.processes import Processes
from autoguidance.evaluate.statistics import DAMAGED_ARCHIVE
from autoguidance.storage import atomic_path

CACHE_VERSION = 1
"""Part of every key: raised when equal keys would give other figures."""

Arrays = dict[str, np.ndarray]


class FeatureCache:
    """A folder of computed arrays, by key.

    Args:
        folder: made when something is stored; None keeps nothing.
    """

    def __init__(self, folder: Path | str | None) -> None:
        self.folder = None if folder is None else Path(folder)
        self._complained = False

    @staticmethod
    def _text(key: Mapping[str, Any]) -> str:
        return json.dumps({"cache_version": CACHE_VERSION, **key}, sort_keys=True, allow_nan=False)

    def path(self, key: Mapping[str, Any]) -> Path | None:
        """Where an entry lies, or would."""
        if self.folder is None:
            return None
        return self.folder / f"{hashlib.sha256(self._text(key).encode()).hexdigest()[:40]}.npz"

    def load(self, key: Mapping[str, Any] | None) -> Arrays | None:
        """The entry of a key; None where there is none, or a damaged one, or the key is None."""
        path = None if key is None else self.path(key)
        if key is None or path is None or not path.is_file():
            return None
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file}
        except DAMAGED_ARCHIVE:
            return None
        return arrays if str(arrays.pop("key", "")) == self._text(key) else None

    def store(self, key: Mapping[str, Any] | None, arrays: Mapping[str, np.ndarray]) -> None:
        """Keep an entry; a key of None keeps nothing. A folder that cannot be written is reported once, and no error."""
        path = None if key is None else self.path(key)
        if key is None or path is None:
            return
        try:
            with atomic_path(path) as temporary, temporary.open("wb") as file:
                np.savez(file, key=np.array(self._text(key)), **arrays)  # type: ignore[arg-type]
        except UserError as error:
            if not self._complained:
                logging.getLogger("autoguidance").warning("features are not kept: %s", error)
            self._complained = True

    def arrays(
        self, key: Mapping[str, Any] | None, compute: Callable[[], Arrays], processes: Processes | None = None
    ) -> Arrays:
        """The entry of a key; where any process lacks it, all compute it together and the first one stores it."""
        processes = processes or Processes()
        found = self.load(key)
        if any(absent for absent in processes.gather(found is None)) or found is None:
            found = compute()
            if processes.rank == 0:
                self.store(key, found)
        return found
