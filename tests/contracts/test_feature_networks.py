"""What every feature network must keep."""

import importlib.util
import re

import pytest
import torch
from random_weights import random_arrays
from torch import Tensor, nn

from autoguidance.data import open_data
from autoguidance.errors import UserError
from autoguidance.evaluate import FeatureNetwork, PixelFeatures, extract_features, source_statistics, train_classifier
from autoguidance.evaluate.callables import CallableFeatures
from autoguidance.evaluate.dinov2 import Dinov2Shape, load_dinov2, stored_layout
from autoguidance.evaluate.features import MICRO_BATCH
from autoguidance.evaluate.inception import InceptionFeatures, InceptionV3
from autoguidance.evaluate.running import CHUNK
from autoguidance.evaluate.torchscript import load_torchscript


class Own(nn.Module):
    """What a user might bring: one convolution on images of any size."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 7, 3)
        for name, array in random_arrays({n: tuple(p.shape) for n, p in self.conv.named_parameters()}).items():
            self.conv.get_parameter(name).data = torch.from_numpy(array)

    def forward(self, images: Tensor) -> Tensor:
        return torch.relu(self.conv(images.float() / 127.5 - 1)).mean(dim=(2, 3))


def narrow_inception() -> FeatureNetwork:
    """The FID network's way of the data at 1/16 of its width; the whole one is in tests/numerics."""
    network = InceptionV3(divisor=16)
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    network.load_state_dict({name: torch.from_numpy(array) for name, array in random_arrays(shapes).items()})
    return InceptionFeatures(network, "0" * 64)


def small_dinov2(folder) -> FeatureNetwork:
    if importlib.util.find_spec("transformers") is None:
        pytest.skip("needs the extra `dinov2`")
    import json
    from dataclasses import asdict

    from safetensors.torch import save_file

    shape = Dinov2Shape(hidden_size=24, num_hidden_layers=2, num_attention_heads=2, patch_size=28, image_size=84)
    (folder / "config.json").write_text(json.dumps({"model_type": "dinov2", **asdict(shape)}))
    arrays = random_arrays(stored_layout(shape))
    save_file({name: torch.from_numpy(array) for name, array in arrays.items()}, folder / "model.safetensors")
    return load_dinov2(folder)


NETWORKS = {
    "pixels": lambda _: PixelFeatures(channels=1, resolution=8),
    "pixels-rgb": lambda _: PixelFeatures(channels=3, resolution=8),
    "classifier": lambda folder: train_classifier(open_data("digits"), folder / "digits.safetensors", epochs=2),
    "inception": lambda _: narrow_inception(),
    "dinov2": small_dinov2,
    "torchscript": lambda folder: load_torchscript(scripted(folder / "own.pt"), resolution=8),
    "callable": lambda _: CallableFeatures(Own().eval(), name="own", resolution=8),
}


def scripted(path):
    torch.jit.script(Own().eval()).save(str(path))
    return path


@pytest.fixture(scope="module", params=NETWORKS)
def network(request, tmp_path_factory) -> FeatureNetwork:
    return NETWORKS[request.param](tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def resizes(network):
    """Whether the network takes images of any size (and, for these here, more slowly)."""
    return not isinstance(network, PixelFeatures) and network.name != "classifier"


@pytest.fixture(scope="module")
def images(resizes):
    return open_data("digits").read(range(70 if resizes else 200))


def collect(network, batches):
    return torch.cat(list(extract_features(network, batches)))


def test_attributes_and_output(network, images):
    assert isinstance(network, FeatureNetwork)
    assert re.fullmatch("[0-9a-f]{64}", network.sha256)
    features = network(images[:5])
    assert features.shape == (5, network.num_features)
    assert features.dtype == torch.float32
    assert torch.isfinite(features).all()
    assert re.fullmatch(r"none|[a-z]+(-[a-z0-9]+)+", getattr(network, "resize", "none"))


def test_the_micro_batch_is_made_of_whole_chunks():
    assert MICRO_BATCH % CHUNK == 0


def test_bitwise_the_same_for_any_batch_size(network, images, resizes):
    whole = collect(network, [images])
    for size in (7, MICRO_BATCH) if resizes else (1, 7, MICRO_BATCH, 150):
        assert torch.equal(collect(network, images.split(size)), whole)
    # Neither neighbours nor the place in the batch count.
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    assert torch.equal(collect(network, [images[order]]), whole[order])


def test_grey_images_are_the_same_as_rgb(network, images):
    torch.testing.assert_close(network(images[:9].expand(-1, 3, -1, -1)), network(images[:9]), rtol=1e-4, atol=1e-4)


def test_images_are_not_changed(network, images):
    before = images.clone()
    collect(network, [images])
    assert torch.equal(images, before)


def test_sees_a_change_and_keeps_no_graph(network, images):
    features = collect(network, [images[:9]])
    assert not features.requires_grad
    assert not torch.allclose(collect(network, [255 - images[:9]]), features)


@pytest.mark.parametrize(
    "bad",
    [torch.zeros(2, 1, 8, 8), torch.zeros(2, 2, 8, 8).byte(), torch.zeros(8, 8).byte(), torch.zeros(2, 1, 0, 8).byte()],
)
def test_wrong_images_are_refused(network, bad):
    with pytest.raises(UserError, match="takes"):
        network(bad)


def test_the_size_is_free_or_checked(network, resizes):
    other = torch.full((2, 1, 9, 11), 200, dtype=torch.uint8)
    if resizes:
        assert network(other).shape == (2, network.num_features)
    else:
        with pytest.raises(UserError, match="takes 8x8 images, not 9x11"):
            network(other)


def test_statistics_carry_the_origin(network):
    source = open_data("digits")
    (statistics,) = source_statistics([network], source, indices=range(20))
    assert statistics.num == 20
    assert statistics.record["features_sha256"] == network.sha256
    assert statistics.record["source_sha256"] == source.fingerprint
