"""Our Inception-v3 against torch-fidelity's, on the same random weights and images (`make_inception_golden.py`)."""

from pathlib import Path

import numpy as np
import pytest
import torch
from random_weights import IMAGE_SHAPES, layout_sha256, random_arrays, random_image
from torch.nn import functional

from autoguidance.evaluate import inception
from autoguidance.evaluate.inception import InceptionFeatures, InceptionV3, resize_tf1

GOLDEN = Path(__file__).parent / "data" / "inception.npz"


@pytest.fixture(scope="module")
def expected():
    with np.load(GOLDEN) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def network():
    with torch.device("meta"):
        made = InceptionV3()
    shapes = {name: tuple(tensor.shape) for name, tensor in made.state_dict().items()}
    made.load_state_dict({n: torch.from_numpy(a) for n, a in random_arrays(shapes).items()}, assign=True)
    return InceptionFeatures(made, "0" * 64)


def features_of(network, index):
    return network(torch.from_numpy(random_image(IMAGE_SHAPES[index]))[None])[0].numpy()


def relative(found, wanted):
    return np.abs(found - wanted).max() / np.abs(wanted).max()


def test_parameters_have_the_names_and_shapes_of_the_port(expected):
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in InceptionV3().state_dict().items()}
    assert len(shapes) == expected["num_entries"] == 94 * 6 + 2
    assert layout_sha256(shapes) == str(expected["layout"])


@pytest.mark.parametrize("index", range(len(IMAGE_SHAPES)), ids=lambda index: "x".join(map(str, IMAGE_SHAPES[index])))
def test_features_are_those_of_the_second_implementation(network, expected, index):
    assert relative(features_of(network, index), expected["features"][index]) < 1e-5


def test_images_have_features_far_apart_at_this_precision(expected):
    values = expected["features"]
    for a in range(len(values)):
        for b in range(a):
            assert relative(values[a], values[b]) > 1e-2


@pytest.mark.parametrize("index", range(len(IMAGE_SHAPES)), ids=lambda index: "x".join(map(str, IMAGE_SHAPES[index])))
def test_resize_is_that_of_the_second_implementation(expected, index):
    image = torch.from_numpy(random_image(IMAGE_SHAPES[index])).expand(3, -1, -1)[None].float()
    found = resize_tf1(image, 299)[0, :, ::23, ::23].numpy()
    assert np.abs(found - expected["resized"][index]).max() < 1e-3  # of 255


def _mean_everywhere(x, kind):
    return functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False) if kind == "max" else _pool(x, kind)


def _padding_counted(x, kind):
    return functional.avg_pool2d(x, 3, 1, 1) if kind == "average" else _pool(x, kind)


def _half_pixel(images, size):
    return functional.interpolate(images, (size, size), mode="bilinear")


_pool = inception._pool


@pytest.mark.parametrize(
    "name,wrong",
    [("_pool", _mean_everywhere), ("_pool", _padding_counted), ("resize_tf1", _half_pixel)],
    ids=["mean in Mixed_7c", "padding counted", "half-pixel resize"],
)
def test_each_peculiarity_matters(network, expected, monkeypatch, name, wrong):
    monkeypatch.setattr(inception, name, wrong)
    assert relative(features_of(network, 2), expected["features"][2]) > 1e-3
