"""Rows of results.json from streams of images."""

import numpy as np
import pytest
import torch

from autoguidance.data import open_data
from autoguidance.errors import UserError
from autoguidance.evaluate import (
    PixelFeatures,
    Reference,
    Statistics,
    batch_statistics,
    evaluate_images,
    frechet_distance,
    half_distance,
    protocol_of,
    source_statistics,
    split_images,
)


class Channel:
    """A second feature network: mean and spread of each image, scaled."""

    name, sha256, num_features = "channel", "e" * 64, 2

    def __call__(self, images):
        return torch.stack(torch.std_mean(images.float().flatten(1), dim=1), dim=1)


@pytest.fixture(scope="module")
def digits():
    return open_data("digits")


@pytest.fixture(scope="module")
def references(digits):
    networks = [PixelFeatures(channels=1, resolution=8), Channel()]
    found = source_statistics(networks, digits)
    return [Reference(network=n, statistics=s) for n, s in zip(networks, found, strict=True)]


def test_row_and_protocol(digits, references):
    sets = split_images(digits.num_images, 500, 3)
    done = []
    measured = evaluate_images(
        (digits.read(indices).split(7 + 60 * r) for r, indices in enumerate(sets)),
        references,
        method="unguided",
        details={"main": "runs/main", "weight": 1.0},
        total_images=1500,
        progress=lambda *a: done.append(a[:2]),
    )
    expected = [
        frechet_distance(batch_statistics([references[0].network], [digits.read(i)])[0], references[0].statistics)
        for i in sets
    ]
    row = measured.row
    assert row["fd_repeats"] == expected  # bitwise, though the batches were others
    assert row["fd"] == pytest.approx(np.mean(expected))
    assert row["fd_std"] == pytest.approx(np.std(expected, ddof=1))
    assert (row["method"], row["main"], row["weight"]) == ("unguided", "runs/main", 1.0)
    assert list(row["features"]) == ["pixels", "channel"]
    assert row["features"]["pixels"]["fd"] == row["fd"] != row["features"]["channel"]["fd"]
    assert done[-1] == (1500, 1500)
    assert [count for count, _ in done] == sorted(count for count, _ in done)
    protocol = protocol_of(measured, references, class_sampling="balanced", seeds=("0-499", "500-999", "1000-1499"))
    assert (protocol.num_images, protocol.num_real, protocol.repeats) == (500, 1797, 3)
    assert (protocol.reference, protocol.reference_sha256) == ("digits", digits.fingerprint)
    assert protocol.features_sha256 == references[0].network.sha256
    assert dict(protocol.other_features) == {"channel": "e" * 64}
    assert measured.notes == protocol.notes == ()


def test_one_repeat_has_no_spread_and_few_images_a_note(digits, references):
    measured = evaluate_images([[digits.read(range(64))]], references)
    assert measured.row["fd_std"] is None
    assert len(measured.notes) == 1
    assert measured.notes[0].startswith("pixels: no more images than features (64)")


def test_half_distance_is_the_mean_over_halves(digits, references):
    generator = torch.Generator().manual_seed(5)
    distances = []
    for _ in range(2):
        half = torch.randperm(1797, generator=generator)[:898]
        features = references[0].network(digits.read(half))
        distances.append(frechet_distance(Statistics.from_features(features), references[0].statistics))
    assert half_distance(references[0], digits, repeats=2, seed=5) == pytest.approx(np.mean(distances), rel=1e-6)


def test_nothing_unequal_or_wrong_is_measured(digits, references):
    with pytest.raises(UserError, match="repeat 2 has 90 images, the first 100"):
        evaluate_images([[digits.read(range(100))], [digits.read(range(90))]], references)
    with pytest.raises(UserError, match="nothing to measure"):
        evaluate_images([], references)
    with pytest.raises(UserError, match="0 images"):
        evaluate_images([[]], references)
    with pytest.raises(UserError, match="8x8 images, not 16x16"):
        evaluate_images([[torch.zeros(9, 1, 16, 16).byte()]], references)
    with pytest.raises(UserError, match="each once"):
        evaluate_images([[digits.read(range(9))]], [references[0], references[0]])


def test_a_reference_of_another_network_is_refused(references):
    with pytest.raises(UserError, match="not with channel"):
        Reference(network=Channel(), statistics=references[0].statistics)
    other = PixelFeatures(channels=1, resolution=9)  # as many features, but not the same ones
    with pytest.raises(UserError, match="not with pixels"):
        Reference(network=other, statistics=references[0].statistics)


def test_split_images_into_disjoint_sets():
    sets = split_images(100, 30, 3)
    assert [len(s) for s in sets] == [30, 30, 30]
    assert len(set(np.concatenate(sets))) == 90
    assert sets[0].max() > 60  # drawn from everywhere, not the first class
    assert [s.tolist() for s in split_images(7, None, 2, in_order=True)] == [[0, 1, 2], [3, 4, 5]]
    for arguments in ((100, 51, 2), (3, None, 2), (100, 1, 1)):
        with pytest.raises(UserError, match="images are needed"):
            split_images(*arguments)
    with pytest.raises(UserError, match="repeats is 0"):
        split_images(10, None, 0)
