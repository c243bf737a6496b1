"""Weight files from elsewhere: read as data, refused where they lie."""

import io
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from autoguidance.errors import UserError
from autoguidance.evaluate.weights import check_weights, read_weights, weights_sha256


def tensors():
    return {"b": torch.arange(6.0).reshape(2, 3), "a": torch.tensor([1.5]), "n": torch.tensor(7)}


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors", "ordered", "parameters"])
def test_every_form_gives_the_same_weights(form, tmp_path):
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pth")
    if form == "safetensors":
        save_file(tensors(), path)
    elif form == "parameters":
        torch.save({n: nn.Parameter(t, requires_grad=t.is_floating_point()) for n, t in tensors().items()}, path)
    else:
        content = OrderedDict(tensors()) if form == "ordered" else tensors()
        torch.save(content, path, _use_new_zipfile_serialization=form != "legacy")
    checked = check_weights(read_weights(path, "a test"), tensors())
    assert sorted(checked) == ["a", "b", "n"]
    assert all(torch.equal(checked[name], tensor) for name, tensor in tensors().items())
    assert not any(tensor.requires_grad for tensor in checked.values())
    assert weights_sha256(checked, {"version": 1}) == weights_sha256(tensors(), {"version": 1})


def test_the_hash_sees_names_shapes_values_and_the_description():
    one = weights_sha256(tensors(), {"version": 1})
    assert one == weights_sha256(dict(reversed(tensors().items())), {"version": 1})
    others = [
        weights_sha256(tensors(), {"version": 2}),
        weights_sha256({**tensors(), "b": tensors()["b"].reshape(3, 2)}, {"version": 1}),
        weights_sha256({**tensors(), "a": torch.tensor([1.25])}, {"version": 1}),
        weights_sha256({"A" if n == "a" else n: t for n, t in tensors().items()}, {"version": 1}),
    ]
    assert len({one, *others}) == 5


class Canary:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("form", ["zip", "legacy", "bare"])
def test_code_in_a_pickle_is_not_run(form, tmp_path):
    path, canary = tmp_path / "w.pth", tmp_path / "CANARY"
    if form == "bare":
        path.write_bytes(pickle.dumps({"a": Canary(canary)}))
    else:
        torch.save({"a": Canary(canary)}, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(UserError, match=r"w.pth cannot be read as weights of a test"):
        read_weights(path, "a test")
    assert not canary.exists()
    if form == "bare":  # the canary does sing where code is run
        pickle.loads(path.read_bytes())
        assert canary.exists()


def test_an_archive_that_inflates_is_refused_before_it_does(tmp_path):
    stored = io.BytesIO()
    torch.save({"a": torch.zeros(1 << 20)}, stored)
    path = tmp_path / "w.pth"
    with zipfile.ZipFile(stored) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for member in source.infolist():
            target.writestr(member.filename, source.read(member.filename))
    assert path.stat().st_size < 100_000
    torch.load(path, weights_only=True)  # torch itself inflates it
    with pytest.raises(UserError, match="compressed, or declares more bytes"):
        read_weights(path, "a test")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"not a weight file", bytes(1000), pickle.dumps([1, 2])])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_other_files_are_refused(content, suffix, tmp_path):
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"cannot be read as weights of a test \(.*download it again"):
        read_weights(path, "a test")


@pytest.mark.parametrize("content", [torch.zeros(3), [torch.zeros(3)], {1: torch.zeros(3)}, "text"])
def test_no_table_of_names_is_refused(content, tmp_path):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(UserError, match="no table of named tensors"):
        read_weights(tmp_path / "w.pth", "a test")


def test_missing_files_are_named(tmp_path):
    with pytest.raises(UserError, match=r"absent.pth does not exist; name the weights of a test"):
        read_weights(tmp_path / "absent.pth", "a test")
    with pytest.raises(UserError, match="is a folder"):
        read_weights(tmp_path, "a test")


@pytest.mark.parametrize(
    "name,value,message",
    [
        ("a", 3, "a is not a plain tensor"),
        ("a", torch.zeros(1, device="meta"), "a is not a plain tensor"),
        ("b", torch.zeros(2, 3).to_sparse(), "b is not a plain tensor"),
        ("b", torch.quantize_per_tensor(torch.zeros(2, 3), 1.0, 0, torch.qint8), "b is not a plain tensor"),
        ("b", torch.zeros(1).expand(1 << 40), r"b is torch.float32 \[1099511627776\], not torch.float32 \[2, 3\]"),
        ("b", torch.zeros(2, 3).double(), "b is torch.float64"),
        ("b", torch.full((2, 3), torch.inf), "b holds NaN or infinity"),
        ("c", torch.zeros(1), "c is not expected"),
        ("a", None, "a is missing"),
    ],
)
def test_tensors_that_lie_are_refused_by_name(name, value, message):
    weights = {**tensors(), name: value}
    if value is None:
        del weights[name]
    with pytest.raises(ValueError, match=message):
        check_weights(weights, tensors())


def test_checked_tensors_are_dense_and_independent():
    backing = torch.tensor([2.0])
    checked = check_weights({"b": backing.expand(2, 3)}, {"b": torch.empty(2, 3, device="meta")})
    assert checked["b"].is_contiguous()
    checked["b"][0, 0] = 5
    assert backing.item() == 2
    assert checked["b"].sum() == 15
