"""DINOv2: what is done around transformers' model, against a second one written from the paper."""

import ast
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from random_weights import random_array
from safetensors.torch import load_file, save_file
from torch.nn import functional

from autoguidance import evaluate
from autoguidance.errors import UserError
from autoguidance.evaluate import open_network
from autoguidance.evaluate.dinov2 import (
    MEAN,
    REPOSITORIES,
    STD,
    Dinov2Shape,
    cached_dinov2,
    interpolated_positions,
    load_dinov2,
    resize_bicubic,
)

WIDTH, LAYERS, HEADS, GRID = 48, 3, 4, 9
CONFIG = {
    "model_type": "dinov2",
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "mlp_ratio": 4,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-06,
    "image_size": 14 * GRID,
    "patch_size": 14,
    "num_channels": 3,
    "qkv_bias": True,
    "use_swiglu_ffn": False,
    "layerscale_value": 1.0,
    "torch_dtype": "float32",
}
needs_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="needs the extra `dinov2`"
)


def published_layout():
    """Names and shapes as in facebook/dinov2-*'s model.safetensors, for the small configuration."""
    shapes = {
        "embeddings.cls_token": (1, 1, WIDTH),
        "embeddings.mask_token": (1, WIDTH),
        "embeddings.patch_embeddings.projection.weight": (WIDTH, 3, 14, 14),
        "embeddings.patch_embeddings.projection.bias": (WIDTH,),
        "embeddings.position_embeddings": (1, 1 + GRID**2, WIDTH),
        "layernorm.weight": (WIDTH,),
        "layernorm.bias": (WIDTH,),
    }
    for layer in range(LAYERS):
        linear = {
            "attention.attention.query": (WIDTH, WIDTH),
            "attention.attention.key": (WIDTH, WIDTH),
            "attention.attention.value": (WIDTH, WIDTH),
            "attention.output.dense": (WIDTH, WIDTH),
            "mlp.fc1": (4 * WIDTH, WIDTH),
            "mlp.fc2": (WIDTH, 4 * WIDTH),
        }
        prefix = f"encoder.layer.{layer}"
        for name, (outputs, inputs) in linear.items():
            shapes[f"{prefix}.{name}.weight"] = (outputs, inputs)
            shapes[f"{prefix}.{name}.bias"] = (outputs,)
        for name in ("norm1", "norm2"):
            shapes[f"{prefix}.{name}.weight"] = shapes[f"{prefix}.{name}.bias"] = (WIDTH,)
        for name in ("layer_scale1", "layer_scale2"):
            shapes[f"{prefix}.{name}.lambda1"] = (WIDTH,)
    return shapes


def random_weights():
    return {name: torch.from_numpy(random_array(name, shape)) for name, shape in published_layout().items()}


def write_folder(folder, weights=None, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    save_file(random_weights() if weights is None else weights, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("dinov2") / "small")


@pytest.fixture(scope="module")
def images():
    return torch.randint(0, 256, (3, 3, 60, 60), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def authors_positions(positions):
    """Bicubic (a = -3/4) at (i + 1/2) 9 / 16.1 - 1/2, edges repeated, written as a matrix per axis."""
    matrix = np.zeros((16, GRID))
    for i in range(16):
        at = (i + 0.5) * GRID / 16.1 - 0.5
        for tap in range(int(np.floor(at)) - 1, int(np.floor(at)) + 3):
            t = abs(at - tap)
            weight = (1.25 * t - 2.25) * t * t + 1 if t <= 1 else ((-0.75 * t + 3.75) * t - 6) * t + 3
            matrix[i, min(max(tap, 0), GRID - 1)] += weight
    patches = positions[0, 1:].double().numpy().reshape(GRID, GRID, WIDTH)
    patches = np.einsum("ia,jb,abd->ijd", matrix, matrix, patches).reshape(256, WIDTH)
    return torch.cat([positions[0, :1].double(), torch.from_numpy(patches)])


def plain_dinov2(weights, x):
    """The class token of a DINOv2 in float64, from the paper: no module of transformers or torch.nn."""
    w = {name: tensor.double() for name, tensor in weights.items()}
    x = x.double()

    def linear(name, h):
        return h @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(name, h):
        centred = h - h.mean(-1, keepdim=True)
        return centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]

    def heads(h):
        return h.reshape(len(h), -1, HEADS, WIDTH // HEADS).transpose(1, 2)

    patches = x.reshape(len(x), 3, 16, 14, 16, 14).permute(0, 2, 4, 1, 3, 5).reshape(len(x), 256, -1)
    projection = w["embeddings.patch_embeddings.projection.weight"].reshape(WIDTH, -1)
    tokens = patches @ projection.T + w["embeddings.patch_embeddings.projection.bias"]
    h = torch.cat([w["embeddings.cls_token"].expand(len(x), -1, -1), tokens], dim=1)
    h = h + authors_positions(weights["embeddings.position_embeddings"])
    for layer in range(LAYERS):
        name = f"encoder.layer.{layer}"
        z = norm(f"{name}.norm1", h)
        query, key, value = (
            heads(linear(f"{name}.attention.attention.{part}", z)) for part in ("query", "key", "value")
        )
        attention = (query @ key.transpose(2, 3) / (WIDTH // HEADS) ** 0.5).softmax(-1)
        mixed = (attention @ value).transpose(1, 2).reshape(len(x), -1, WIDTH)
        h = h + w[f"{name}.layer_scale1.lambda1"] * linear(f"{name}.attention.output.dense", mixed)
        z = linear(f"{name}.mlp.fc1", norm(f"{name}.norm2", h))
        z = z * 0.5 * (1 + torch.erf(z / 2**0.5))
        h = h + w[f"{name}.layer_scale2.lambda1"] * linear(f"{name}.mlp.fc2", z)
    return norm("layernorm", h)[:, 0]


@needs_transformers
def test_features_are_those_of_the_paper(folder, images, capfd):
    network = load_dinov2(folder)
    assert capfd.readouterr() == ("", "")
    assert (network.num_features, network.resize) == (WIDTH, "bicubic-antialias-224")
    x = functional.interpolate(images.double() / 255, size=(224, 224), mode="bicubic", antialias=True)
    x = (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    wanted = plain_dinov2(random_weights(), x)
    found = network(images)
    assert (found - wanted).abs().max() < 1e-4 * wanted.abs().max()
    # The images are further apart than that precision.
    assert (wanted[0] - wanted[1]).abs().max() > 1e-2 * wanted.abs().max()
    grey = images[:, :1]
    torch.testing.assert_close(network(grey), network(grey.expand(-1, 3, -1, -1)))


@needs_transformers
def test_the_positions_are_not_those_of_transformers(folder, images):
    from transformers import Dinov2Model

    theirs = Dinov2Model.from_pretrained(str(folder), local_files_only=True).eval()
    x = resize_bicubic(images.float() / 255, 224)
    x = (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    with torch.no_grad():
        without_offset = theirs(pixel_values=x).last_hidden_state[:, 0]
        ours = load_dinov2(folder)(images)
        theirs.embeddings.position_embeddings.data = interpolated_positions(theirs.embeddings.position_embeddings, 16)
        with_offset = theirs(pixel_values=x).last_hidden_state[:, 0]
    scale = ours.abs().max()
    assert (ours - with_offset).abs().max() < 1e-5 * scale
    assert (ours - without_offset).abs().max() > 1e-3 * scale


def test_positions_of_the_right_grid_stay():
    positions = torch.rand(1, 257, 5)
    assert interpolated_positions(positions, 16) is positions


@pytest.mark.parametrize("size", [8, 32, 224, 300, 512])
def test_resize_is_pillows_on_floats(size):
    generator = torch.Generator().manual_seed(size)
    image = torch.rand(1, 1, size, size, generator=generator) * 255
    pillow = Image.fromarray(image[0, 0].numpy(), mode="F").resize((224, 224), Image.Resampling.BICUBIC)
    # Of 255; torch's filter weights are float32, Pillow's float64.
    assert np.abs(resize_bicubic(image, 224)[0, 0].numpy() - np.asarray(pillow)).max() < 1e-2
    if size not in (8, 224):
        plain = functional.interpolate(image, (224, 224), mode="bicubic")
        assert np.abs(plain[0, 0].numpy() - np.asarray(pillow)).max() > 10
    # On bytes, Pillow also rounds and clips after each axis; these are too far from 0 and 255 to be clipped.
    middle = torch.randint(96, 160, (1, 1, size, size), generator=generator, dtype=torch.uint8)
    pillow = Image.fromarray(middle[0, 0].numpy(), mode="L").resize((224, 224), Image.Resampling.BICUBIC)
    assert np.abs(resize_bicubic(middle.float(), 224)[0, 0].numpy() - np.asarray(pillow)).max() < 1.5


@needs_transformers
def test_the_hash_names_weights_and_shape_not_the_folder(folder, images, tmp_path):
    one = load_dinov2(folder)
    again = load_dinov2(write_folder(tmp_path / "copy", torch_dtype="bfloat16", architectures=["Dinov2Model"]))
    assert again.sha256 == one.sha256
    assert torch.equal(again(images), one(images))
    weights = random_weights()
    weights["layernorm.bias"] = weights["layernorm.bias"] + 1
    other = load_dinov2(write_folder(tmp_path / "other", weights))
    assert load_dinov2(write_folder(tmp_path / "eps", layer_norm_eps=1e-5)).sha256 != one.sha256 != other.sha256
    assert not torch.allclose(other(images), one(images))
    assert one.name == "dinov2:small"
    assert open_network(f"dinov2:{folder}", channels=3, resolution=32).sha256 == one.sha256


def cut(weights):
    return {name: tensor for name, tensor in weights.items() if name != "layernorm.bias"}


@needs_transformers
@pytest.mark.parametrize(
    "config,weights,message",
    [
        ({"model_type": "dinov2_with_registers"}, None, "is of the model type 'dinov2_with_registers', not 'dinov2'"),
        ({"hidden_size": 10**9}, None, "hidden_size is 1000000000"),
        ({"num_hidden_layers": 1e9}, None, r"num_hidden_layers is 1000000000\.0"),
        ({"num_hidden_layers": True}, None, "num_hidden_layers is True"),
        ({"num_attention_heads": 5}, None, "do not share out to 5 heads"),
        ({"patch_size": 15}, None, "patch_size is 15"),
        ({"hidden_act": "relu"}, None, "hidden_act is 'relu'"),
        ({"num_channels": 1}, None, "num_channels is 1"),
        ({"use_swiglu_ffn": "yes"}, None, "use_swiglu_ffn is 'yes'"),
        ({"layer_norm_eps": -1.0}, None, r"layer_norm_eps is -1\.0"),
        ({"num_hidden_layers": 4}, None, r"encoder.layer.3.\S+ is missing"),
        (
            {"image_size": 518},
            None,
            r"position_embeddings is torch.float32 \[1, 82, 48\], not torch.float32 \[1, 1370,",
        ),
        ({}, cut, "layernorm.bias is missing"),
        ({}, lambda w: {**w, "pooler.dense.bias": torch.zeros(3)}, "pooler.dense.bias is not expected"),
        ({}, lambda w: {n: t.half() for n, t in w.items()}, "is torch.float16"),
    ],
)
def test_other_networks_are_refused_by_name(tmp_path, config, weights, message):
    folder = write_folder(tmp_path / "other", weights and weights(random_weights()), **config)
    with pytest.raises(UserError, match=message) as caught:
        load_dinov2(folder)
    assert str(folder) in str(caught.value)


@needs_transformers
def test_damaged_folders_are_refused(folder, tmp_path):
    copy = write_folder(tmp_path / "copy")
    content = (folder / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(content[:-10])
    with pytest.raises(UserError, match="cannot be read as weights of DINOv2"):
        load_dinov2(copy)
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")  # a pickle is no substitute
    with pytest.raises(UserError, match=r"copy has no model.safetensors"):
        load_dinov2(copy)
    (copy / "config.json").write_text("{")
    (copy / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="is not valid JSON"):
        load_dinov2(copy)
    (copy / "config.json").write_text("[]")
    with pytest.raises(UserError, match="is of the model type 'None'"):
        load_dinov2(copy)


@needs_transformers
def test_the_hugging_face_cache_is_looked_at_and_never_filled(monkeypatch, tmp_path):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the network was asked"))
    with pytest.raises(UserError) as caught:
        open_network("dinov2", channels=3, resolution=32)
    message = str(caught.value)
    assert "`hf download facebook/dinov2-large config.json model.safetensors`" in message
    assert "\n" not in message
    cache = tmp_path / f"models--{REPOSITORIES['s'].replace('/', '--')}"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("abc")
    snapshot = write_folder(cache / "snapshots" / "abc")
    assert cached_dinov2("s") == snapshot
    assert open_network("dinov2:s", channels=3, resolution=32).num_features == WIDTH
    with pytest.raises(UserError, match="no such folder, and no such size; give s, b, l"):
        open_network("dinov2:xl", channels=3, resolution=32)


def test_the_published_sizes_have_their_names():
    for size, width in {"s": 384, "b": 768, "l": 1024}.items():
        shape = Dinov2Shape.from_config({**CONFIG, "hidden_size": width, "image_size": 518})
        assert shape.stored_grid == 37
        assert REPOSITORIES[size].startswith("facebook/dinov2-")


def test_the_missing_extra_is_named(monkeypatch, folder):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "transformers" else found(name))
    with pytest.raises(UserError, match=r"need the `dinov2` extra; run: pip install 'autoguidance\[dinov2\]'"):
        load_dinov2(folder)


def test_optional_libraries_are_imported_only_when_they_are_used():
    folder = Path(evaluate.__file__).parent
    names = set()
    for path in folder.glob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:  # the top level: what is imported at once
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add(node.module)
    assert "torch" in names
    assert not any(str(name).startswith(("transformers", "huggingface_hub")) for name in names)


@needs_transformers
def test_their_writer_has_the_published_layout(folder, tmp_path):
    """What transformers writes is what is read here, so a model saved by it can be used."""
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    Dinov2Model(Dinov2Config(**CONFIG)).save_pretrained(tmp_path / "saved")
    stored = load_file(tmp_path / "saved" / "model.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in stored.items()} == published_layout()
    assert load_dinov2(tmp_path / "saved").num_features == WIDTH
