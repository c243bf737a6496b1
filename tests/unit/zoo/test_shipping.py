"""Pairs that come with the package: made from a tuned pair, found by name, listed, and refused where they are not fit to ship."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from autoguidance.cli import main
from autoguidance.errors import UserError
from autoguidance.models import read_model_info, read_weights, save_model
from autoguidance.sample import Heun, sample
from autoguidance.storage import sha256_file
from autoguidance.zoo import Pair, identify, load, shipped_pairs, shipping
from autoguidance.zoo.identity import content_key
from autoguidance.zoo.shipped_pairs import describe_shipped, folder_bytes, shipped_names
from autoguidance.zoo.shipping import SECTIONS, ship

CARD = "# Stripes\n\n" + "\n".join(f"## {section}\n\nText, Apache-2.0.\n" for section in SECTIONS)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the shipped pairs lie in this test, and an empty working folder."""
    monkeypatch.setattr(shipped_pairs, "FOLDER", tmp_path / "shipped")
    monkeypatch.setattr(shipping, "FOLDER", tmp_path / "shipped")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "shipped"


@pytest.fixture
def tuned(trained: Path) -> Pair:
    return Pair(
        main=f"{trained}@0.070",
        guide=f"{trained}@0.100:1024",
        weight=1.5,
        interval=(0.1, 10.0),
        solver=Heun(num_steps=4),
        measurement={"row": {"fd": 1.5, "reference": "/home/someone/stripes.npz"}, "notes": ["/tmp/x/y", "a/b"]},
    )


@pytest.fixture
def stripes(folder: Path, tuned: Pair) -> Path:
    return ship(tuned, "stripes", CARD)


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    return error


def test_a_shipped_folder(stripes: Path, tuned: Pair, trained: Path) -> None:
    assert sorted(path.name for path in stripes.iterdir()) == [
        "card.md",
        "guide.safetensors",
        "main.safetensors",
        "pair.json",
    ]
    assert [path.name for path in stripes.parent.iterdir()] == ["stripes"]
    content = json.loads((stripes / "pair.json").read_text())
    assert (content["main"], content["guide"]) == ("main.safetensors", "guide.safetensors")
    assert (content["weight"], content["interval"], content["solver"]["num_steps"]) == (1.5, [0.1, 10.0], 4)
    # Nothing of the machine that it was made on, and nothing else is lost.
    assert content["measurement"] == {"row": {"fd": 1.5, "reference": "stripes.npz"}, "notes": ["y", "a/b"]}
    infos = {role: read_model_info(stripes / f"{role}.safetensors") for role in ("main", "guide")}
    assert {role: (info.ema_std, info.num_images) for role, info in infos.items()} == {
        "main": (0.07, 4096),
        "guide": (0.1, 1024),
    }
    stored = next((trained / "snapshots").glob("00000001024-0.100.*"))
    for role, info in infos.items():
        assert info.licence == "Apache-2.0"
        assert info.provenance["data"] == "stripes.zip"
        assert info.provenance["config_sha256"] == "c" * 64
        for name, tensor in load_file(stripes / f"{role}.safetensors").items():
            assert tensor.dtype == (torch.float16 if tensor.ndim > 1 else torch.float32), name
    for name, tensor in load_file(stripes / "guide.safetensors").items():
        assert torch.equal(tensor.float(), load_file(stored)[name].to(tensor.dtype).float())
    assert str(trained) not in "".join(path.read_bytes().decode("latin1") for path in stripes.iterdir())


def test_the_images_are_the_original_pairs(stripes: Path, tuned: Pair) -> None:
    shipped = Pair.load("stripes")
    assert (shipped.main, shipped.guide) == ("shipped:stripes/main", "shipped:stripes/guide")
    assert replace(shipped, main=tuned.main, guide=tuned.guide, measurement=tuned.measurement) == tuned
    images = [sample(p.denoiser(), seeds=range(20, 24), solver=p.solver).int() for p in (tuned, shipped)]
    assert (images[0] - images[1]).abs().max() <= 2
    assert images[0].float().std() > 10  # they show something


def test_made_anew(stripes: Path, tuned: Pair) -> None:
    before = sha256_file(stripes / "main.safetensors")
    assert ship(replace(tuned, main=f"{tuned.main[:-5]}0.100"), "stripes", CARD, data="Stripes") == stripes
    assert sha256_file(stripes / "main.safetensors") != before
    assert [path.name for path in stripes.parent.iterdir()] == ["stripes"]
    assert describe_shipped("stripes").data == "Stripes"


def rewritten(trained: Path, path: Path, change: Callable[[torch.Tensor], torch.Tensor], **info: object) -> str:
    """A model file like a snapshot but for its kernels and metadata."""
    source = trained / "snapshots" / "00000004096-0.050.safetensors"
    weights = {name: change(t) if t.ndim > 1 else t for name, t in read_weights(source).items()}
    save_model(path, weights, replace(read_model_info(source), **info))
    return str(path)


def same(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def huge(tensor: torch.Tensor) -> torch.Tensor:
    return tensor * 1e9


@pytest.mark.parametrize(
    ("change", "info", "message"),
    [
        (huge, {}, "too large for float16"),
        (same, {"licence": "CC-BY-NC-SA-4.0"}, "licensed CC-BY-NC-SA-4.0; it cannot be shipped as Apache-2.0"),
        (same, {"provenance": {"code_version": "1"}}, "does not say its config_sha256, data_fingerprint"),
    ],
)
def test_networks_that_are_not_shipped(
    stripes: Path, tuned: Pair, trained: Path, tmp_path: Path, change, info, message
) -> None:
    before = {path: path.read_bytes() for path in stripes.iterdir()}
    model = rewritten(trained, tmp_path / "x.safetensors", change, **info)
    with pytest.raises(UserError, match=message):
        ship(replace(tuned, main=model), "stripes", CARD)
    assert {path: path.read_bytes() for path in stripes.iterdir()} == before
    assert [path.name for path in stripes.parent.iterdir()] == ["stripes"]


def test_a_pair_that_float16_changes_is_not_shipped(stripes: Path, tuned: Pair) -> None:
    before = sha256_file(stripes / "main.safetensors"), sha256_file(stripes / "pair.json")
    with pytest.raises(UserError, match=r"images differ by up to \d+ of 255 .* of all values by more than 2"):
        ship(replace(tuned, weight=20.0), "stripes", CARD)  # makes much of the smallest rounding
    assert (sha256_file(stripes / "main.safetensors"), sha256_file(stripes / "pair.json")) == before


def test_a_model_file_is_shipped_too(folder: Path, tuned: Pair, trained: Path, tmp_path: Path) -> None:
    model = rewritten(trained, tmp_path / "x.safetensors", same)
    assert read_model_info(ship(replace(tuned, main=model), "file", CARD) / "main.safetensors").ema_std == 0.05


def test_the_limit_is_of_all_pairs_together(stripes: Path, tuned: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    size = folder_bytes(stripes)
    monkeypatch.setattr(shipping, "MAX_TOTAL_BYTES", 2 * size - 1)
    ship(tuned, "stripes", CARD)  # in place of the one that is there
    with pytest.raises(UserError, match="all shipped pairs would take"):
        ship(tuned, "stripez", CARD)
    assert shipped_names() == ["stripes"]
    monkeypatch.setattr(shipping, "MAX_TOTAL_BYTES", 2 * size)
    ship(tuned, "stripez", CARD)
    assert shipped_names() == ["stripes", "stripez"]


@pytest.mark.parametrize("section", SECTIONS)
def test_a_card_without_a_section_is_refused(folder: Path, tuned: Pair, section: str) -> None:
    for card in (
        CARD.replace(f"## {section}\n", "## Other\n"),
        CARD.replace(f"## {section}\n\nText, Apache-2.0.\n", f"## {section}\n"),
    ):
        with pytest.raises(UserError, match=f"lacks `## {section}`"):
            ship(tuned, "stripes", card)
    assert shipped_names() == []


@pytest.mark.parametrize(
    ("changes", "name", "card", "licence", "message"),
    [
        ({}, "stripes", CARD[2:], "Apache-2.0", "no title"),
        ({}, "stripes", CARD, "CC0-1.0", "does not name CC0-1.0"),
        ({}, "../stripes", CARD, "Apache-2.0", "cannot be a pair's name"),
        ({}, "Stripes", CARD, "Apache-2.0", "cannot be a pair's name"),
        ({"weight": 1.0}, "stripes", CARD, "Apache-2.0", "method is unguided"),
        ({"guide": None, "weight": 1.0, "cfg_weight": 1.5}, "stripes", CARD, "Apache-2.0", "method is cfg"),
    ],
)
def test_what_is_not_shipped(folder: Path, tuned: Pair, changes, name, card, licence, message) -> None:
    with pytest.raises(UserError, match=message):
        ship(replace(tuned, **changes), name, card, licence=licence)


def test_from_the_command_line(tmp_path: Path, tuned: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    tuned.save(tmp_path / "pair.json")
    arguments = [str(tmp_path), "stripes", "--card", str(tmp_path / "card.md"), "--folder", str(tmp_path / "all")]
    assert shipping.main(arguments) == 2
    assert "does not exist; write the model card" in one_line(capsys)
    (tmp_path / "card.md").write_text(CARD)
    assert shipping.main([*arguments, "--data", "Stripes"]) == 0
    assert shipped_names(tmp_path / "all") == ["stripes"]
    assert str(tmp_path / "all" / "stripes") in capsys.readouterr().out


def test_a_file_or_folder_of_that_name_goes_first(stripes: Path, tuned: Pair) -> None:
    Path("stripes").mkdir()
    with pytest.raises(UserError, match=r"stripes/pair\.json does not exist; .* write shipped:stripes$"):
        Pair.load("stripes")
    replace(tuned, weight=2.0).save(Path("stripes") / "pair.json")
    assert Pair.load("stripes").weight == 2.0
    assert Pair.load("shipped:stripes").weight == 1.5


def test_networks_by_name(stripes: Path) -> None:
    for role in ("main", "guide"):
        file = stripes / f"{role}.safetensors"
        model = load(f"shipped:stripes/{role}")
        assert all(
            torch.equal(a, b.float()) for a, b in zip(model.state_dict().values(), by_order(file, model), strict=True)
        )
        assert identify(f"shipped:stripes/{role}") == content_key(f"shipped:stripes/{role}")
        assert identify(f"shipped:stripes/{role}") == {"sha256": sha256_file(file)}


def by_order(file: Path, model: torch.nn.Module) -> list[torch.Tensor]:
    stored = read_weights(file)
    return [stored[name] for name in model.state_dict()]


def test_a_pair_of_shipped_networks_keeps_their_names(stripes: Path, tmp_path: Path) -> None:
    pair = replace(Pair.load("stripes"), weight=1.7)
    pair.save(tmp_path / "mine" / "pair.json")
    assert json.loads((tmp_path / "mine" / "pair.json").read_text())["main"] == "shipped:stripes/main"
    assert Pair.load(tmp_path / "mine") == pair


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("strips", "did you mean stripes?"),
        ("edm2-img512-s-autog-fid", "did you mean preset:edm2-img512-s-autog-fid?"),
        ("zzz", r"shipped are stripes \(`autoguidance models` lists all\)"),
        ("shipped:zzz", "shipped are stripes"),
        ("shipped:../shipped/stripes", "there is no pair"),
        ("stripes.json", r"stripes\.json does not exist; check the path"),
        ("no/stripes", "no/stripes does not exist; check the path"),
    ],
)
def test_pairs_that_are_not(stripes: Path, name: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=message):
        Pair.load(name)
    assert main(["generate", "--pair", name, "--out", "out"]) == 2
    one_line(capsys)


def test_nothing_shipped(folder: Path) -> None:
    with pytest.raises(UserError, match="this version ships none"):
        Pair.load("stripes")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("stripes", "is a pair, not one model; .* its main model shipped:stripes/main"),
        ("stripes@0.1", "its main model shipped:stripes/main"),
        ("shipped:stripes", "is a pair, not one model"),
        ("shipped:stripes/other", "write shipped:stripes/main or shipped:stripes/guide"),
        ("shipped:stripes/main@0.1", "write shipped:stripes/main or shipped:stripes/guide"),
        ("shipped:strips/main", "did you mean stripes?"),
    ],
)
def test_models_that_are_not(stripes: Path, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(name)


def test_a_folder_whose_pair_names_other_models(stripes: Path) -> None:
    content = json.loads((stripes / "pair.json").read_text())
    (stripes / "pair.json").write_text(json.dumps({**content, "guide": "/elsewhere/guide.safetensors"}))
    with pytest.raises(UserError, match="models that lie elsewhere"):
        Pair.load("stripes")


def test_generate_at_once(stripes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["generate", "--pair", "stripes", "--seeds", "0-3", "--out", str(tmp_path / "out")]
    assert main(arguments) == 0
    settings = json.loads((tmp_path / "out" / "generation.json").read_text())
    assert (settings["main"], settings["weight"], settings["licence"]) == ("shipped:stripes/main", 1.5, ["Apache-2.0"])
    assert len(list((tmp_path / "out").glob("*.png"))) == 4


def test_the_list_and_the_card(stripes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[0] == "stripes"
    assert lines[0].endswith("Apache-2.0")
    assert "stripes.zip, 8 x 8, 3 classes" in lines[1]
    assert lines[2].startswith("preset:")
    assert main(["models", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    num_parameters = sum(p.numel() for p in load("shipped:stripes/main").state_dict().values())
    assert content["shipped"] == [
        {
            "name": "stripes",
            "data": "stripes.zip",
            "resolution": 8,
            "num_classes": 3,
            "weight": 1.5,
            "parameters_main": num_parameters,
            "parameters_guide": num_parameters,
            "num_bytes": sum(path.stat().st_size for path in stripes.iterdir()),
            "licence": "Apache-2.0",
        }
    ]
    assert main(["models", "stripes"]) == 0
    assert capsys.readouterr().out.strip() == CARD.strip()
    assert main(["models", "stripes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {**content["shipped"][0], "card": CARD}


@pytest.mark.parametrize(
    ("name", "message"), [("strips", "did you mean stripes?"), ("preset:edm2-img64-s-fid", "has no card")]
)
def test_cards_that_are_not(stripes: Path, name: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", name]) == 2
    assert message in one_line(capsys)
