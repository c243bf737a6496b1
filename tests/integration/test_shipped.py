"""Every pair that really comes with the package: it works without a connection, in time, and says what it is."""

import socket
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest

from autoguidance.cli import main
from autoguidance.models import read_model_info
from autoguidance.zoo import Pair
from autoguidance.zoo.shipped_pairs import FOLDER, describe_shipped, folder_bytes, read_card, shipped_names
from autoguidance.zoo.shipping import MAX_TOTAL_BYTES, PROVENANCE, check_card

ROOT = Path(__file__).resolve().parents[2]
FILES = {"pair.json", "main.safetensors", "guide.safetensors", "card.md"}
NAMES = shipped_names() or [pytest.param("", marks=pytest.mark.skip(reason=f"no pair is shipped yet in {FOLDER}"))]


def test_all_together_are_small() -> None:
    assert folder_bytes(FOLDER) <= MAX_TOTAL_BYTES + 10_000  # and the folder's own page


def test_nothing_else_lies_there() -> None:
    assert {path.name for path in FOLDER.iterdir()} == {*shipped_names(), "README.md"}


@pytest.mark.parametrize("name", NAMES)
def test_all_of_it_goes_into_wheels(name: str) -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    patterns = settings["package-data"]["autoguidance.zoo"]
    packaged = {path for pattern in patterns for path in FOLDER.parent.glob(pattern)}
    assert {path.name for path in (FOLDER / name).iterdir()} == FILES
    assert packaged >= set((FOLDER / name).iterdir())


@pytest.mark.parametrize("name", NAMES)
def test_it_says_what_it_is(name: str) -> None:
    infos = [read_model_info(FOLDER / name / f"{role}.safetensors") for role in ("main", "guide")]
    for info in infos:
        assert info.licence
        assert all(info.provenance.get(key) for key in PROVENANCE)
        check_card(read_card(name), info.licence)
    described = describe_shipped(name)
    assert described.data != "unknown"
    pair = Pair.load(name)
    assert pair.method.startswith("autoguidance")
    assert pair.measurement, "the pair file does not say what chose it"
    for path in (FOLDER / name).iterdir():
        for place in (b"/home/", b"/tmp/", b"/root/", b"/work/"):
            assert place not in path.read_bytes(), f"{path.name} names a folder of the machine that it was made on"


@pytest.mark.parametrize("name", NAMES)
def test_it_generates_at_once(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a shipped pair asks the network for something")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.chdir(tmp_path)
    start = time.monotonic()
    arguments = ["generate", "--pair", name, "--seeds", "0-3", "--device", "cpu", "--format", "npz", "--out", "out"]
    assert main(arguments) == 0
    assert time.monotonic() - start < 60
    with np.load(tmp_path / "out" / "images.npz") as arrays:
        images = arrays["images"]
    resolution = describe_shipped(name).resolution
    assert images.shape[0] == 4
    assert images.shape[2:] == (resolution, resolution)
    assert all(image.std() > 5 for image in images)  # none is of one grey
    assert len({image.tobytes() for image in images}) == 4
