"""The FID network: its resize, its files, where they are looked for. The features themselves: tests/numerics."""

import hashlib

import numpy as np
import pytest
import torch
from random_weights import random_arrays
from safetensors.torch import save_file
from torch.nn import functional

from autoguidance.errors import UserError
from autoguidance.evaluate import inception, open_network
from autoguidance.evaluate.inception import FILE_NAMES, InceptionFeatures, InceptionV3, load_inception, resize_tf1


def random_weights(network):
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    return {name: torch.from_numpy(array) for name, array in random_arrays(shapes).items()}


@pytest.fixture(scope="module")
def weights():
    with torch.device("meta"):
        return random_weights(InceptionV3())


@pytest.fixture(scope="module")
def file(weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(weights, path)
    return path


@pytest.fixture
def narrow():
    network = InceptionV3(divisor=16)
    network.load_state_dict(random_weights(network))
    return network


@pytest.fixture
def images():
    return torch.randint(0, 256, (3, 3, 20, 20), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.mark.parametrize("length", [1, 8, 150, 299, 1024])
def test_resize_reads_at_i_times_scale(length):
    ramp = torch.arange(length, dtype=torch.float32).expand(1, 1, 3, -1)
    wanted = (torch.arange(299, dtype=torch.float64) * length / 299).clamp_max(length - 1)  # the last pixel is held
    for image in (ramp, ramp.transpose(2, 3)):
        found = resize_tf1(image, 299)
        along = found[0, 0, 5] if image is ramp else found[0, 0, :, 5]
        torch.testing.assert_close(along.double(), wanted, rtol=1e-5, atol=1e-4)


def test_resize_of_the_right_size_is_the_image_itself():
    image = torch.rand(1, 3, 299, 299)
    assert torch.equal(resize_tf1(image, 299), image)


def test_folding_keeps_the_features(narrow):
    x = torch.randn(2, 3, 299, 299, generator=torch.Generator().manual_seed(0))
    narrow.eval()
    with torch.no_grad():
        before = narrow(x)
        after = narrow.fold()(x)
    assert before.shape == (2, 2048 // 16)
    torch.testing.assert_close(after, before, rtol=0, atol=1e-5 * before.abs().max().item())


def test_precision_settings_of_the_program_do_not_count(narrow, images):
    network = InceptionFeatures(narrow, "0" * 64)
    wanted = network(images)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            # The settings do lower the precision of what is not protected from them.
            assert functional.conv2d(torch.ones(1, 1, 3, 3), torch.full((1, 1, 3, 3), 0.1)).dtype == torch.bfloat16
            assert torch.equal(network(images), wanted)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert not network(images).requires_grad


def test_the_same_weights_are_the_same_network_in_any_file(weights, file, images, tmp_path):
    from_pickle = load_inception(file)
    other = tmp_path / "weights.safetensors"
    # Some ports leave out the batch norms' counters, which nothing depends on.
    save_file({name: tensor for name, tensor in weights.items() if "num_batches" not in name}, other)
    from_safetensors = load_inception(other)
    assert from_pickle.sha256 == from_safetensors.sha256
    assert torch.equal(from_pickle(images), from_safetensors(images))
    assert (from_pickle.num_features, from_pickle.resize) == (2048, "bilinear-tf1-299")
    opened = open_network(f"inception:{file}", channels=1, resolution=8)
    assert opened.name == "inception"
    assert opened.sha256 == from_pickle.sha256


def changed(weights, **changes):
    return {**weights, **{name.replace("__", "."): value for name, value in changes.items()}}


@pytest.mark.parametrize(
    "change,message",
    [
        (lambda w: {n: t for n, t in w.items() if n != "fc.bias"}, "fc.bias is missing"),
        (lambda w: changed(w, AuxLogits__fc=torch.zeros(3)), "AuxLogits.fc is not expected"),
        (lambda w: changed(w, fc__weight=torch.zeros(1000, 2048)), r"fc.weight is torch.float32 \[1000, 2048\]"),
        (lambda w: changed(w, fc__bias=torch.zeros(1008).half()), "fc.bias is torch.float16"),
        (lambda w: changed(w, fc__bias=torch.full((1008,), torch.nan)), "fc.bias holds NaN"),
        (lambda w: changed(w, Mixed_7c__branch_pool__bn__running_var=torch.full((192,), -1.0)), "var is negative"),
        (lambda w: changed(w, fc__weight=w["fc.weight"].to_sparse()), "fc.weight is not a plain tensor"),
    ],
)
def test_other_weights_are_refused_by_name(weights, tmp_path, change, message):
    path = tmp_path / "other.pth"
    torch.save(change(weights), path)
    with pytest.raises(UserError, match=message) as caught:
        load_inception(path)
    assert str(path) in str(caught.value)


def test_a_damaged_file_is_refused(file, tmp_path):
    content = file.read_bytes()
    short = tmp_path / "short.pth"
    short.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"short.pth cannot be read as weights of Inception-v3"):
        load_inception(short)
    # torch.hub's convention: the name ends in the first digits of the SHA-256.
    named = tmp_path / f"weights-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    named.write_bytes(content)
    assert load_inception(named).num_features == 2048
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    named.write_bytes(flipped)
    with pytest.raises(UserError, match="is damaged or another file"):
        load_inception(named)


def test_nothing_is_downloaded_unasked(monkeypatch, tmp_path):
    monkeypatch.setenv("AUTOGUIDANCE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    with pytest.raises(UserError) as caught:
        open_network("inception", channels=3, resolution=32)
    message = str(caught.value)
    assert "\n" not in message
    assert f"download https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{FILE_NAMES[0]}" in message
    assert str(tmp_path / "cache" / "features") in message
    assert "inception:FILE" in message
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / FILE_NAMES[1]).write_bytes(b"half a download")
    with pytest.raises(UserError, match="is damaged: its SHA-256 is not 6726825d"):
        open_network("inception", channels=3, resolution=32)


@pytest.mark.parametrize("place", ["cache/features", "torch/hub/checkpoints"])
def test_cached_weights_are_found(monkeypatch, tmp_path, file, place):
    monkeypatch.setenv("AUTOGUIDANCE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(inception, "FILE_SHA256", hashlib.sha256(file.read_bytes()).hexdigest())
    monkeypatch.setattr(inception, "FILE_NAMES", ("here.pth",))
    target = tmp_path / place / "here.pth"
    target.parent.mkdir(parents=True)
    target.symlink_to(file)
    assert inception.cached_inception() == target


def test_a_name_on_the_hub_is_fetched_because_it_was_given(monkeypatch, file):
    asked = []

    def fetch(repository, name):
        asked.append((repository, name))
        if name == "absent.pth":
            raise OSError("404 Client Error.\nmore")
        return str(file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    assert isinstance(load_inception("hf://someone/fid/files/w.pth"), InceptionFeatures)
    assert asked == [("someone/fid", "files/w.pth")]
    with pytest.raises(UserError, match=r"cannot fetch hf://someone/fid/absent.pth \(404 Client Error\)"):
        load_inception("hf://someone/fid/absent.pth")
    with pytest.raises(UserError, match="write hf://OWNER/REPOSITORY/FILE"):
        load_inception("hf://someone")


def test_features_are_those_of_the_image_alone(narrow, images):
    network = InceptionFeatures(narrow, "0" * 64)
    features = network(images)
    assert np.isfinite(features.numpy()).all()
    torch.testing.assert_close(network(images[1:2])[0], features[1], rtol=0, atol=1e-5 * features.abs().max().item())
    for bad in (images.float(), images[:, :2], images[0], images[:, :, :0]):
        with pytest.raises(UserError, match="'inception' takes uint8 images"):
            network(bad)
