"""What every feature network must keep."""

import re

import pytest
import torch

from autoguidance.data import open_data
from autoguidance.errors import UserError
from autoguidance.evaluate import FeatureNetwork, PixelFeatures, extract_features, source_statistics, train_classifier
from autoguidance.evaluate.features import MICRO_BATCH


@pytest.fixture(scope="module", params=["pixels", "pixels-rgb", "classifier"])
def network(request, tmp_path_factory) -> FeatureNetwork:
    if request.param == "classifier":
        path = tmp_path_factory.mktemp("classifier") / "digits.safetensors"
        return train_classifier(open_data("digits"), path, epochs=2)
    return PixelFeatures(channels=3 if request.param == "pixels-rgb" else 1, resolution=8)


@pytest.fixture(scope="module")
def images():
    return open_data("digits").read(range(200))


def collect(network, batches):
    return torch.cat(list(extract_features(network, batches)))


def test_attributes_and_output(network, images):
    assert isinstance(network, FeatureNetwork)
    assert re.fullmatch("[0-9a-f]{64}", network.sha256)
    features = network(images[:5])
    assert features.shape == (5, network.num_features)
    assert features.dtype == torch.float32
    assert torch.isfinite(features).all()


def test_bitwise_the_same_for_any_batch_size(network, images):
    whole = collect(network, [images])
    for size in (1, 7, MICRO_BATCH, 150):
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
    [torch.zeros(2, 1, 8, 8), torch.zeros(2, 1, 9, 9).byte(), torch.zeros(2, 2, 8, 8).byte(), torch.zeros(8, 8).byte()],
)
def test_wrong_images_are_refused(network, bad):
    with pytest.raises(UserError, match="takes"):
        network(bad)


def test_statistics_carry_the_origin(network):
    source = open_data("digits")
    (statistics,) = source_statistics([network], source)
    assert statistics.num == source.num_images
    assert statistics.record["features_sha256"] == network.sha256
    assert statistics.record["source_sha256"] == source.fingerprint
