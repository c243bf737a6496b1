"""Pixel features and the fixed micro-batches."""

import pytest
import torch

from autoguidance.errors import UserError
from autoguidance.evaluate.features import MICRO_BATCH, PixelFeatures, micro_batches, to_channels


def images(num, channels=1, resolution=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (num, channels, resolution, resolution), generator=generator).byte()


@pytest.mark.parametrize("sizes", [[0], [1], [64], [65], [3, 61, 64, 1], [200, 0, 9]])
def test_micro_batches_hold_every_image_once(sizes):
    every = images(sum(sizes))
    found = list(micro_batches(every.split(sizes)))
    assert all(len(batch) == MICRO_BATCH for batch, _ in found)
    assert torch.equal(torch.cat([batch[:count] for batch, count in found] or [every[:0]]), every)
    assert all(count == MICRO_BATCH for _, count in found[:-1])
    for batch, count in found[-1:]:
        assert not batch[count:].any()


def test_images_of_two_sizes_are_refused():
    with pytest.raises(UserError, match="one size"):
        list(micro_batches([images(3), images(3, resolution=9)]))


def test_pixels_are_block_means():
    x = images(3, channels=3, resolution=32)
    features = PixelFeatures(channels=3, resolution=32)(x)
    expected = (x.double() / 255).reshape(3, 3, 8, 4, 8, 4).mean(dim=(3, 5)).flatten(1)
    torch.testing.assert_close(features.double(), expected, rtol=1e-5, atol=1e-6)
    small = images(2, resolution=5)
    torch.testing.assert_close(PixelFeatures(channels=1, resolution=5)(small), small.flatten(1) / 255)


def test_pixel_networks_of_other_sizes_have_other_hashes():
    networks = [PixelFeatures(channels=c, resolution=r) for c in (1, 3) for r in (8, 32, 64)]
    assert len({network.sha256 for network in networks}) == 6
    assert PixelFeatures(channels=1, resolution=8).sha256 == networks[0].sha256
    assert max(network.num_features for network in networks) == 192
    with pytest.raises(UserError, match="2 channels"):
        PixelFeatures(channels=2, resolution=8)


def test_rgb_to_grey_is_luma():
    x = torch.tensor([1.0, 0.5, 0.25]).reshape(1, 3, 1, 1)
    assert to_channels(x, 1).item() == pytest.approx(0.299 + 0.587 * 0.5 + 0.114 * 0.25)
