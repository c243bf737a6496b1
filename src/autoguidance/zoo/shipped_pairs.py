"""The trained pairs that come with the package: they work at once, without a connection.

| name | is |
|---|---|
| `fashion-mnist` | where a pair is asked for: that pair; a file or folder of this name goes first |
| `shipped:fashion-mnist` | the same, whatever lies here |
| `shipped:fashion-mnist/main`, `.../guide` | one of its networks, wherever a model is asked for |

A pair is a folder `shipped/NAME/` with `pair.json`, `main.safetensors`, `guide.safetensors` and its model card, `card.md`; `shipping`
makes it.
"""

import difflib
import re
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open

from autoguidance.data.encoders import make_encoder
from autoguidance.errors import UserError
from autoguidance.models import read_model_info
from autoguidance.storage import read_json
from autoguidance.zoo.published import PRESET_PREFIX, PUBLISHED_PAIRS

SHIPPED_PREFIX = "shipped:"
FOLDER = Path(__file__).with_name("shipped")
"""Where the pairs lie. Looked up at every call."""
PAIR_FILE = "pair.json"
CARD = "card.md"
ROLES = ("main", "guide")
NAME = re.compile(r"[a-z0-9]+(?:[-.][a-z0-9]+)*")


@dataclass(frozen=True, kw_only=True)
class ShippedPair:
    """What a list of the shipped pairs says about each.

    Attributes:
        name: as given to --pair.
        data: what its networks were trained on.
        resolution: of the images, in pixels.
        num_classes: 0: without classes.
        weight: autoguidance weight w.
        parameters_main, parameters_guide: of the networks.
        num_bytes: of the whole folder.
        licence: of the weights.
    """

    name: str
    data: str
    resolution: int
    num_classes: int
    weight: float
    parameters_main: int
    parameters_guide: int
    num_bytes: int
    licence: str | None


def shipped_names(folder: Path | None = None) -> list[str]:
    """Names of the pairs in a folder of shipped pairs, sorted; None: the package's."""
    folder = FOLDER if folder is None else folder
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if NAME.fullmatch(path.name) and (path / PAIR_FILE).is_file())


def shipped_folder(name: str) -> Path:
    """The folder of a shipped pair, with or without `shipped:`. Raises UserError, naming what there is, where there is none."""
    bare = name.removeprefix(SHIPPED_PREFIX)
    if bare in shipped_names():
        return FOLDER / bare
    raise UserError(
        f"there is no pair {name!r}: no file or folder, and no pair shipped under this name; {_instead_of(bare)}"
    )


def _instead_of(name: str) -> str:
    shipped = shipped_names()
    presets = {pair: f"{PRESET_PREFIX}{pair}" for pair in PUBLISHED_PAIRS}
    near = difflib.get_close_matches(name, [*shipped, *presets], n=1)
    if near:
        return f"did you mean {presets.get(near[0], near[0])}?"
    listed = f"shipped are {', '.join(shipped)}" if shipped else "this version ships none"
    return f"{listed} (`autoguidance models` lists all)"


def shipped_file(name: str) -> Path:
    """The model file that `shipped:NAME/main` or `shipped:NAME/guide` names. Raises UserError where it names none."""
    pair, _, role = name.removeprefix(SHIPPED_PREFIX).partition("/")
    folder = shipped_folder(f"{SHIPPED_PREFIX}{pair}")
    if not role:
        raise UserError(
            f"{name} is a pair, not one model; give it to --pair, or name its main model {SHIPPED_PREFIX}{pair}/main"
        )
    if role not in ROLES:
        raise UserError(f"{name}: write {' or '.join(f'{SHIPPED_PREFIX}{pair}/{part}' for part in ROLES)}")
    return folder / f"{role}.safetensors"


def read_card(name: str) -> str:
    """The model card of a shipped pair, in Markdown. Raises UserError where there is no such pair or it has none."""
    path = shipped_folder(name) / CARD
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); install autoguidance again") from None


def describe_shipped(name: str) -> ShippedPair:
    """What is known of a shipped pair, from its files. Raises UserError where there is none or it is damaged."""
    folder = shipped_folder(name)
    info = read_model_info(folder / "main.safetensors")
    channels, latent_resolution = info.config["img_channels"], info.config["img_resolution"]
    encoder = make_encoder(info.encoder, img_channels=channels, img_resolution=latent_resolution)
    return ShippedPair(
        name=folder.name,
        data=str(info.provenance.get("data", "unknown")),
        resolution=encoder.resolution,
        num_classes=info.config.get("label_dim", 0),
        weight=float(read_json(folder / PAIR_FILE)["weight"]),
        parameters_main=_num_parameters(folder / "main.safetensors"),
        parameters_guide=_num_parameters(folder / "guide.safetensors"),
        num_bytes=folder_bytes(folder),
        licence=info.licence,
    )


def _num_parameters(path: Path) -> int:
    read_model_info(path)  # a damaged file is then the user's error, in one line
    with safe_open(str(path), "pt") as file:
        shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118 (not a dict)
    count = 0
    for shape in shapes:
        size = 1
        for length in shape:
            size *= length
        count += size
    return count


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
