"""A tuned pair becomes one that comes with the package: `python -m autoguidance.zoo.shipping PAIR NAME --card card.md`.

Both networks are written as model files at their chosen EMA width, kernels and matrices as float16; gains, frequencies and phases, a
few hundred numbers, keep float32. The folder comes into being only if

* its networks say what they were trained on and with (provenance), and its card has every section of `SECTIONS`;
* it gives images within `MAX_DIFFERENCE` of the original pair's in every pixel, for the same seeds;
* all shipped pairs together take at most `MAX_TOTAL_BYTES`.
"""

import argparse
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autoguidance.errors import UserError
from autoguidance.models import save_model
from autoguidance.sample import sample
from autoguidance.storage import make_folder, write_text
from autoguidance.zoo.names import read_named
from autoguidance.zoo.pairs import Pair
from autoguidance.zoo.shipped_pairs import CARD, FOLDER, NAME, PAIR_FILE, folder_bytes, shipped_names

MAX_TOTAL_BYTES = 12_000_000
MAX_DIFFERENCE = 2
SECTIONS = ("Data", "Licence of the weights", "Training", "Parameters", "Figures", "Limits", "Intended use")
PROVENANCE = ("config_sha256", "data_fingerprint", "code_version")
_SEEDS = range(8)


def check_card(text: str, licence: str | None = None) -> None:
    """Raise UserError where a model card lacks its title or a section, or its licence is not that of the weights."""
    if not text.startswith("# "):
        raise UserError("the card has no title; begin it with `# ` and the pair's name")
    parts = re.split(r"^## (.+)$", text, flags=re.MULTILINE)
    found = {title.strip(): body.strip() for title, body in zip(parts[1::2], parts[2::2], strict=True)}
    if missing := [section for section in SECTIONS if not found.get(section)]:
        raise UserError(f"the card lacks {', '.join(f'`## {section}`' for section in missing)}; write these sections")
    if licence is not None and licence not in found["Licence of the weights"]:
        raise UserError(f"the card's `## Licence of the weights` does not name {licence}; the model files do")


def ship(
    pair: Pair,
    name: str,
    card: str,
    *,
    licence: str = "Apache-2.0",
    data: str | None = None,
    folder: Path | None = None,
    seeds: Sequence[int] = _SEEDS,
) -> Path:
    """Make, or make anew, the folder of a shipped pair.

    Args:
        pair: a main model and a guide, as tuned.
        name: small letters, digits, dots and hyphens.
        card: the model card, in Markdown; see `SECTIONS`.
        licence: of the weights, as an SPDX identifier; written into both networks.
        data: what to call the training data; None: as the training called them.
        folder: holds the shipped pairs; None: the package's.
        seeds: for the comparison of images.

    Returns: the folder.
    Raises: UserError where the pair cannot be shipped; what was there under this name is then untouched.
    """
    folder = make_folder(FOLDER if folder is None else folder)
    if not NAME.fullmatch(name):
        raise UserError(f"{name!r} cannot be a pair's name; use small letters, digits, single dots and hyphens")
    if pair.guide is None or pair.method.partition("+")[0] != "autoguidance":
        raise UserError(f"its method is {pair.method}; a shipped pair is a main model with a guide, and w is not 1")
    check_card(card, licence)
    target = folder / name
    with tempfile.TemporaryDirectory(dir=folder, prefix=f".{name}.") as temporary:
        new = make_folder(Path(temporary) / name)
        written = replace(
            pair,
            main=_write(pair.main, new / "main.safetensors", licence, data),
            guide=_write(pair.guide, new / "guide.safetensors", licence, data),
            unconditional=None,
            cfg_weight=1.0,
            measurement=_without_paths(pair.measurement),
        )
        written.save(new / PAIR_FILE)
        write_text(new / CARD, card)
        others = sum(folder_bytes(folder / other) for other in shipped_names(folder) if other != name)
        if (total := others + folder_bytes(new)) > MAX_TOTAL_BYTES:
            raise UserError(
                f"all shipped pairs would take {total / 1e6:.1f} MB with {name} ({folder_bytes(new) / 1e6:.1f} MB), more than "
                f"{MAX_TOTAL_BYTES / 1e6:g} MB; take smaller networks or remove a pair"
            )
        differences = image_differences(pair, Pair.load(new), seeds)
        if (largest := int(differences.max())) > MAX_DIFFERENCE:
            share = (differences > MAX_DIFFERENCE).float().mean()
            raise UserError(
                f"{name}: as float16 its images differ by up to {largest} of 255 from the original pair's ({share:.2%} of all values by "
                f"more than {MAX_DIFFERENCE}); it is not shipped"
            )
        if target.exists():
            target.rename(Path(temporary) / "before")
        new.rename(target)
    return target


def _write(source: str, path: Path, licence: str, data: str | None) -> str:
    """Write a network as float16 model file; returns the name of what was written."""
    info, weights = read_named(source)
    if info.licence not in (None, licence):
        raise UserError(f"{source} is licensed {info.licence}; it cannot be shipped as {licence}")
    if missing := [key for key in PROVENANCE if not info.provenance.get(key)]:
        raise UserError(f"{source} does not say its {', '.join(missing)}; ship a model that `autoguidance train` made")
    provenance = _without_paths({**info.provenance, **({} if data is None else {"data": data})})
    halved = {name: tensor.half() if tensor.ndim > 1 else tensor.float() for name, tensor in weights.items()}
    if broken := [name for name, tensor in halved.items() if not bool(torch.isfinite(tensor).all())]:
        raise UserError(f"{source}: {broken[0]} is too large for float16; it is not shipped")
    save_model(path, halved, replace(info, licence=licence, provenance=provenance), dtype=None)
    return str(path)


def _without_paths(record: Any) -> Any:
    """A record in which absolute paths, which say something of this machine only, are reduced to their last part."""
    if isinstance(record, Mapping):
        return {key: _without_paths(value) for key, value in record.items()}
    if isinstance(record, (list, tuple)):
        return [_without_paths(value) for value in record]
    if isinstance(record, str) and record.startswith("/"):
        return Path(record).name
    return record


def image_differences(first: Pair, second: Pair, seeds: Sequence[int]) -> Tensor:
    """How far apart the images are that two pairs give for the same seeds on the CPU: int [N, C, H, W], in levels of 255."""
    images = [sample(pair.denoiser(), seeds=seeds, solver=pair.solver).int() for pair in (first, second)]
    return (images[0] - images[1]).abs()


def main(arguments: Sequence[str] | None = None) -> int:
    """Ship a pair from the command line; exit code as `autoguidance`."""
    parser = argparse.ArgumentParser(
        prog="python -m autoguidance.zoo.shipping", description="Make a tuned pair one that comes with the package."
    )
    parser.add_argument("pair", help="pair.json or its folder, as made by run or tune")
    parser.add_argument("name", help="under which it is shipped")
    parser.add_argument("--card", required=True, type=Path, help="model card (Markdown)")
    parser.add_argument("--licence", default="Apache-2.0", help="of the weights  [default: Apache-2.0]")
    parser.add_argument("--data", help="what to call the training data  [default: as the training called them]")
    parser.add_argument("--folder", type=Path, help="folder of shipped pairs  [default: the package's]")
    options = parser.parse_args(arguments)
    try:
        if not options.card.is_file():
            raise UserError(f"--card {options.card} does not exist; write the model card first")
        card = options.card.read_text(encoding="utf-8")
        pair = Pair.load(options.pair)
        path = ship(pair, options.name, card, licence=options.licence, data=options.data, folder=options.folder)
    except UserError as error:
        sys.stderr.write(f"shipping: {error}\n")
        return 2
    total = sum(folder_bytes(path.parent / name) for name in shipped_names(path.parent))
    sys.stdout.write(f"{path}: {folder_bytes(path) / 1e6:.2f} MB; all shipped pairs: {total / 1e6:.2f} MB\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
