"""What a model's name stands for now, by content: the key under which anything made with the model may be kept.

`identify` says images and EMA width of a run folder, which a second training in the same folder shares; here the
hashes of the stored averages are part of it, because a post-hoc width is made from all of them up to its time.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from autoguidance.errors import UserError
from autoguidance.storage import read_json, sha256_file
from autoguidance.zoo.names import identify, parse_model_name
from autoguidance.zoo.runs import list_snapshots


def content_key(name: str | Path) -> dict[str, Any]:
    """JSON-like identity of a model's weights: equal only where the weights are.

    Raises: UserError as `load` does.
    """
    found = identify(name)
    if "sha256" in found:
        return found
    run = parse_model_name(name).path
    manifest = run / "manifest.json"
    recorded = read_json(manifest).get("files", {}) if manifest.is_file() else {}
    hashes = {}
    for snapshot in list_snapshots(run):
        if snapshot.num_images <= found["num_images"]:
            path = snapshot.path.relative_to(run).as_posix()
            hashes[path] = recorded.get(path) or sha256_file(snapshot.path)
    if not hashes:
        raise UserError(f"{name} holds no snapshots; train it first or name another folder")
    text = json.dumps(hashes, sort_keys=True)
    return {**found, "snapshots_sha256": hashlib.sha256(text.encode()).hexdigest()}
