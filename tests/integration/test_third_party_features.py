"""Feature networks that others trained, as the experiments use them (benchmarks/third_party_features.py).

MobileNet-v2 is tested where AUTOGUIDANCE_NETWORKS names a folder that benchmarks/convert_mobilenet.py wrote.
"""

import importlib
import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from autoguidance.errors import UserError
from autoguidance.evaluate import open_network

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

third_party_features: Any = importlib.import_module("third_party_features")


def again(features: Any) -> Any:
    """The same, not loaded yet."""
    new = object.__new__(type(features))
    new.__dict__.update(features.__dict__, _network=None, _sha256=None)
    return new


@pytest.fixture
def resnet56(shared: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv(
        "AUTOGUIDANCE_NETWORKS", str(shared(f"data/networks/{third_party_features.RESNET56_FILE}").parent)
    )
    return again(third_party_features.resnet56)


@pytest.fixture
def mobilenet_v2() -> Any:
    file = third_party_features.networks_folder() / third_party_features.MOBILENET_V2_FILE
    if not file.exists():
        pytest.skip(f"needs {file.name} in AUTOGUIDANCE_NETWORKS; benchmarks/convert_mobilenet.py makes it")
    return again(third_party_features.mobilenet_v2)


@pytest.fixture(scope="module")
def cifar(shared: Callable[[str], Path]) -> tuple[Tensor, Tensor]:
    """500 training images, the first 50 of each class in the archive, and their classes."""
    found: dict[str, list[Tensor]] = {name: [] for name in CLASSES}
    with tarfile.open(shared("data/cifar10-train.tar.xz"), mode="r|xz") as archive:
        for member in archive:
            name = member.name.split("/")[-2] if member.name.endswith(".jpg") else ""
            if name not in found or len(found[name]) == 50:
                continue
            content = archive.extractfile(member)
            assert content is not None
            pixels = np.array(Image.open(io.BytesIO(content.read())).convert("RGB"))
            found[name].append(torch.from_numpy(pixels).permute(2, 0, 1))
            if all(len(images) == 50 for images in found.values()):
                break
    return torch.cat([torch.stack(found[name]) for name in CLASSES]), torch.arange(10).repeat_interleave(50)


def test_resnet56_classifies_what_it_was_trained_on(resnet56, cifar):
    images, labels = cifar
    features = resnet56(images)
    assert (features.shape, features.dtype) == ((500, 64), torch.float32)
    assert not features.requires_grad
    classes = resnet56.network.linear(features).argmax(dim=1)
    assert (classes == labels).float().mean() > 0.9


@pytest.mark.parametrize("name, num_features", [("resnet56", 64), ("mobilenet_v2", 1280)])
def test_they_are_feature_networks(name, num_features, request, cifar, monkeypatch):
    function = request.getfixturevalue(name)
    monkeypatch.setattr(third_party_features, name, function)
    network: Any = open_network(f"callable:third_party_features:{name}", channels=3, resolution=48)
    assert (network.num_features, network.sha256, network.resize) == (num_features, function.sha256, function.resize)
    assert function.resize.startswith("bilinear-antialias-")
    assert len(function.sha256) == 64


@pytest.mark.parametrize("name", ["resnet56", "mobilenet_v2"])
def test_features_do_not_depend_on_the_neighbours_in_a_batch(name, request, cifar):
    function = request.getfixturevalue(name)
    images = cifar[0][::50]
    together = function(images)
    alone = torch.cat([function(image[None]) for image in images])
    torch.testing.assert_close(together.flip(0), function(images.flip(0)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    assert torch.equal(together, function(images))
    between = torch.cdist(together, together) + 1e9 * torch.eye(len(images))
    assert between.min() > 0.1  # and images are told apart


def test_mobilenet_v2_tells_the_classes_of_cifar_apart(mobilenet_v2, cifar):
    """Nearest class mean, of 12 other images of each class: chance is 10 %."""
    images = cifar[0]
    features = mobilenet_v2(images.reshape(10, 50, 3, 32, 32)[:, :16].flatten(0, 1)).reshape(10, 16, -1)
    means = features[:, :12].mean(dim=1)
    found = torch.cdist(features[:, 12:].flatten(0, 1), means).argmin(dim=1)
    assert (found == torch.arange(10).repeat_interleave(4)).float().mean() > 0.3


@pytest.mark.parametrize("name", ["resnet56", "mobilenet_v2"])
def test_a_missing_or_damaged_file_is_refused_in_one_line(name, tmp_path, monkeypatch):
    monkeypatch.setenv("AUTOGUIDANCE_NETWORKS", str(tmp_path))
    function = again(getattr(third_party_features, name))
    images = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    file = getattr(third_party_features, f"{name.upper()}_FILE")
    for attempt in (lambda: function(images), lambda: function.sha256):
        with pytest.raises(UserError, match=f"{file} does not exist; .*AUTOGUIDANCE_NETWORKS") as caught:
            attempt()
        assert "\n" not in str(caught.value)
    (tmp_path / file).write_bytes(b"no weights")
    with pytest.raises(UserError, match=f"{file} cannot be read") as caught:
        function(images)
    assert "\n" not in str(caught.value)
