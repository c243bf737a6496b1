"""Model files: bitwise round trips, and one line for everything that can be wrong with one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from autoguidance.errors import UserError
from autoguidance.models import ModelInfo, Precond, build_model, load_model, read_model_info, read_weights, save_model
from autoguidance.models.files import METADATA_KEY

CONFIG: dict[str, Any] = {
    "img_resolution": 8,
    "img_channels": 1,
    "label_dim": 3,
    "model_channels": 8,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [8],
    "channels_per_head": 8,
    "sigma_data": 0.6,
}
INFO = ModelInfo(
    config=CONFIG,
    encoder={"name": "pixels", "channels": 1, "resolution": 8},
    class_names=("a", "b", "ä"),
    num_images=4096,
    ema_std=0.05,
    licence="Apache-2.0",
    provenance={"data_fingerprint": "f" * 64},
)


@pytest.fixture(scope="module")
def network() -> Precond:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model(CONFIG).eval().requires_grad_(False)
        for parameter in model.parameters():
            if parameter.ndim == 0:
                parameter.fill_(0.7)
    return model


@pytest.fixture
def file(tmp_path: Path, network: Precond) -> Path:
    save_model(tmp_path / "model.safetensors", network.state_dict(), INFO)
    return tmp_path / "model.safetensors"


def output(model: Precond) -> torch.Tensor:
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(x, torch.tensor([0.3, 4.0]), torch.eye(3)[:2])


def test_round_trip_is_bitwise(file: Path, network: Precond) -> None:
    assert read_model_info(file) == INFO
    weights = read_weights(file)
    assert weights.keys() == network.state_dict().keys()
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())
    loaded = load_model(file)
    assert torch.equal(output(loaded), output(network))
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert (loaded.encoder, loaded.class_names, loaded.num_classes) == (INFO.encoder, INFO.class_names, 3)
    assert (loaded.sigma_data, loaded.img_resolution, loaded.img_channels) == (0.6, 8, 1)
    # And once more through a file: the same bytes.
    again = file.with_name("again.safetensors")
    save_model(again, loaded.state_dict(), read_model_info(file))
    assert again.read_bytes() == file.read_bytes()


def test_half_precision_storage(tmp_path: Path, network: Precond) -> None:
    path = tmp_path / "half.safetensors"
    save_model(path, network.state_dict(), INFO, dtype=torch.float16)
    assert {tensor.dtype for tensor in read_weights(path).values()} == {torch.float16}
    loaded = load_model(path)
    for name, value in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value.half().float())
    # Weights are rounded by up to 2^-11 each, the Fourier phases by up to 2^-9 rad: a per-mille effect.
    torch.testing.assert_close(output(loaded), output(network), rtol=0.02, atol=0.02)


def test_body_dtype(file: Path) -> None:
    exact = output(load_model(file))
    rounded = output(load_model(file, dtype=torch.bfloat16))
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded, exact, rtol=0.1, atol=0.1)
    # float16 on a CPU is two orders of magnitude slower: never used
    assert torch.equal(output(load_model(file, dtype=torch.float16)), exact)


def _replace(path: Path, change: Callable[[dict[str, torch.Tensor], dict[str, Any]], None]) -> None:
    weights, content = load_file(path), json.loads(json.dumps(_content(path)))
    change(weights, content)
    save_file(weights, str(path), metadata={METADATA_KEY: json.dumps(content)})


def _content(path: Path) -> dict[str, Any]:
    raw = path.read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    return json.loads(header["__metadata__"][METADATA_KEY])


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda p: p.unlink(), "does not exist"),
    "a folder": (lambda p: (p.unlink(), p.mkdir()), "is a folder"),
    "empty": (lambda p: p.write_bytes(b""), "not a readable safetensors"),
    "cut in the header": (lambda p: p.write_bytes(p.read_bytes()[:100]), "not a readable safetensors"),
    "cut in the weights": (lambda p: p.write_bytes(p.read_bytes()[:-100]), "not a readable safetensors"),
    "longer": (lambda p: p.write_bytes(p.read_bytes() + b"x"), "not a readable safetensors"),
    "garbage": (lambda p: p.write_bytes(b"\x93garbage" * 1000), "not a readable safetensors"),
    "pickle": (lambda p: torch.save({"a": torch.zeros(2)}, p), "not a readable safetensors"),
    "foreign": (lambda p: save_file({"a": torch.zeros(2)}, str(p)), "not a model of autoguidance"),
    "foreign with metadata": (
        lambda p: save_file({"a": torch.zeros(2)}, str(p), metadata={"format": "pt"}),
        "not a model of autoguidance",
    ),
    "metadata no JSON": (
        lambda p: save_file({"a": torch.zeros(2)}, str(p), metadata={METADATA_KEY: "{"}),
        "metadata is damaged",
    ),
    "metadata a list": (
        lambda p: save_file({"a": torch.zeros(2)}, str(p), metadata={METADATA_KEY: "[1]"}),
        "metadata is damaged",
    ),
    "unknown field": (lambda p: _replace(p, lambda w, c: c.update(colour="red")), "metadata is damaged"),
    "encoder that is a list": (lambda p: _replace(p, lambda w, c: c.update(encoder=[1])), "metadata is damaged"),
    "no version": (lambda p: _replace(p, lambda w, c: c.pop("format_version")), "metadata is damaged"),
    "newer version": (lambda p: _replace(p, lambda w, c: c.update(format_version=99)), "update autoguidance"),
    "other architecture": (lambda p: _replace(p, lambda w, c: c.update(architecture="vit")), "only 'edm2' is known"),
    "config no mapping": (lambda p: _replace(p, lambda w, c: c.update(config=[1])), "architecture"),
    "class names no text": (lambda p: _replace(p, lambda w, c: c.update(class_names=[1, 2])), "architecture"),
    "unknown option": (lambda p: _replace(p, lambda w, c: c["config"].update(colour=1)), "not usable.*colour"),
    "impossible option": (lambda p: _replace(p, lambda w, c: c["config"].update(channel_mult=[])), "halved"),
    "negative size": (lambda p: _replace(p, lambda w, c: c["config"].update(model_channels=-8)), "not usable"),
    "text for a number": (lambda p: _replace(p, lambda w, c: c["config"].update(num_blocks="x")), "not usable"),
    "other sizes": (lambda p: _replace(p, lambda w, c: c["config"].update(model_channels=16)), "do not fit"),
    "a weight too few": (lambda p: _replace(p, lambda w, c: w.pop("unet.out_gain")), "1 differ.*unet.out_gain"),
    "a weight too many": (lambda p: _replace(p, lambda w, c: w.update(x=torch.zeros(1))), "1 differ.*first x"),
    "NaN": (
        lambda p: _replace(p, lambda w, c: w["unet.out_conv.weight"].view(-1)[3:4].fill_(torch.nan)),
        r"unet\.out_conv\.weight holds values that are not finite",
    ),
    "infinity": (lambda p: _replace(p, lambda w, c: w["unet.out_gain"].fill_(torch.inf)), "not finite"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_file_is_refused_in_one_line(file: Path, kind: str) -> None:
    damage, message = DAMAGE[kind]
    damage(file)
    with pytest.raises(UserError, match=message) as caught:
        load_model(file)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    assert (
        "model.safetensors" in str(caught.value)
        or "configuration" in str(caught.value)
        or "halved" in str(caught.value)
    )


def test_a_failed_write_keeps_the_old_file(file: Path, network: Precond, monkeypatch: pytest.MonkeyPatch) -> None:
    before = file.read_bytes()

    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("autoguidance.models.files.save_file", full)
    with pytest.raises(UserError, match="No space left on device"):
        save_model(file, network.state_dict(), INFO)
    assert file.read_bytes() == before
    assert [p.name for p in file.parent.iterdir()] == [file.name]
