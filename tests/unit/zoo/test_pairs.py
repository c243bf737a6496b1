"""Pairs: from settings to a Denoiser, and through pair.json."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from autoguidance.errors import UserError
from autoguidance.guidance import Autoguidance, ClassifierFree, MultiGuidance, NaiveTruncation
from autoguidance.models import Precond
from autoguidance.sample import Euler, Heun
from autoguidance.zoo import Pair


def output(pair: Pair) -> torch.Tensor:
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return pair.denoiser()(x, torch.tensor([0.3, 4.0]), torch.eye(3)[:2])


@pytest.mark.parametrize(
    ("settings", "method", "kind"),
    [
        ({}, "unguided", Precond),
        ({"guide": "@0.050:1024"}, "unguided", Precond),
        ({"guide": "@0.050:1024", "weight": 1.5}, "autoguidance", Autoguidance),
        ({"guide": "@0.050:1024", "weight": 1.5, "interval": (0.1, 3.0)}, "autoguidance+interval", Autoguidance),
        ({"cfg_weight": 1.5}, "cfg", ClassifierFree),
        ({"unconditional": "U", "cfg_weight": 1.5, "interval": (0.1, 3.0)}, "cfg+interval", ClassifierFree),
        ({"guide": "@0.050:1024", "weight": 1.5, "unconditional": "U", "cfg_weight": 1.2}, "mixed", MultiGuidance),
        ({"truncation": 1.1}, "truncation", NaiveTruncation),
    ],
)
def test_settings_to_denoiser_and_file(
    run: Path, unconditional: Path, tmp_path: Path, settings: dict[str, Any], method: str, kind: type
) -> None:
    named = {
        key: f"{run}{value}" if key == "guide" else str(unconditional) if value == "U" else value
        for key, value in settings.items()
    }
    pair = Pair(main=f"{run}@0.070", **named, solver=Heun(num_steps=7, churn=3.0), measurement={"fd": 0.5})
    assert pair.method == method
    denoiser = pair.denoiser()
    assert type(denoiser) is kind
    pair.save(tmp_path / "pair.json")
    again = Pair.load(tmp_path / "pair.json")
    assert again == pair
    assert again == Pair.load(tmp_path)  # the folder of a pair.json will do
    assert torch.equal(output(again), output(pair))
    assert json.loads((tmp_path / "pair.json").read_text())["method"] == method


def test_a_model_that_cannot_matter_is_not_loaded(run: Path) -> None:
    loaded = []

    def loader(name: str) -> Any:
        loaded.append(name)
        return Pair(main=str(run)).denoiser()

    Pair(main="main", guide="nowhere", weight=1.0, unconditional="nowhere too").denoiser(loader=loader)
    assert loaded == ["main"]


def test_the_folder_can_move(run: Path, unconditional: Path, tmp_path: Path) -> None:
    here = tmp_path / "here"
    shutil.copytree(run, here / "main")
    shutil.copytree(unconditional, here / "unconditional")
    pair = Pair(
        main=f"{here / 'main'}@0.070",
        guide=f"{here / 'main'}@0.0725:1024",
        weight=1.5,
        unconditional=str(here / "unconditional"),
        cfg_weight=1.2,
        interval=(0.0, math.inf),
        solver=Euler(num_steps=3),
    )
    expected = output(pair)
    pair.save(here / "pair.json")
    content = json.loads((here / "pair.json").read_text())
    assert (content["main"], content["guide"]) == ("main@0.070", "main@0.0725:1024")
    (tmp_path / "here").rename(tmp_path / "there")
    moved = Pair.load(tmp_path / "there" / "pair.json")
    assert moved.interval == (0.0, math.inf)
    assert torch.equal(output(moved), expected)


def test_relative_paths_are_relative_to_the_file(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.parent)
    Pair(main="main@0.05").save(Path("pairs") / "pair.json")
    monkeypatch.chdir(tmp_path)
    assert Pair.load(run.parent / "pairs").denoiser().num_classes == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight": 2.0}, "without a guide"),
        ({"guide": "x", "weight": -1.0}, "out of range"),
        ({"guide": "x", "weight": math.nan}, "out of range"),
        ({"cfg_weight": 1e9}, "out of range"),
        ({"interval": (3.0, 1.0)}, "interval"),
    ],
)
def test_impossible_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Pair(main="main", **settings)


def test_mixing_needs_an_unconditional_model(run: Path) -> None:
    with pytest.raises(UserError, match="needs an unconditional model"):
        Pair(main=str(run), guide=str(run), weight=1.5, cfg_weight=1.5).denoiser()


def test_models_that_do_not_fit_are_refused(run: Path, unconditional: Path) -> None:
    with pytest.raises(UserError, match="do not fit: number of classes 3 against 0"):
        Pair(main=str(run), guide=str(unconditional), weight=1.5).denoiser()


DAMAGE: dict[str, Any] = {
    "no JSON": "{",
    "a list": "[]",
    "empty": "{}",
    "another version": {"format_version": 2},
    "no main": {"main": None},
    "main a number": {"main": 5},
    "weight a word": {"weight": "much"},
    "weight NaN": {"weight": math.nan},
    "weight without a guide": {"guide": None},
    "interval reversed": {"interval": [3, 1]},
    "interval short": {"interval": [3]},
    "interval a number": {"interval": 3},
    "solver unknown": {"solver": {"name": "dpm"}},
    "solver a word": {"solver": "heun"},
    "solver with 8.5 steps": {"solver": {"name": "heun", "num_steps": 8.5}},
    "solver with steps as text": {"solver": {"name": "heun", "num_steps": "8"}},
    "guide of a bad name": {"guide": "main@9"},
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_files_are_refused_in_one_line(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "pair.json"
    Pair(main="main", guide="guide", weight=1.5, solver=Heun()).save(path)
    content = json.loads(path.read_text())
    damage = DAMAGE[kind]
    path.write_text(damage if isinstance(damage, str) else json.dumps({**content, **damage}))
    with pytest.raises(UserError, match=r"pair\.json") as caught:
        Pair.load(path)
    assert "\n" not in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "x.json"):
        with pytest.raises(UserError, match=r"\.json does not exist"):
            Pair.load(path)
