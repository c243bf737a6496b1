"""The classifier that is trained on the user's own data: reproducible, stored whole, and sensitive to what matters."""

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn import functional

from autoguidance.data import open_data
from autoguidance.errors import UserError
from autoguidance.evaluate import Reference, batch_statistics, frechet_distance, half_distance, source_statistics
from autoguidance.evaluate.classifier import METADATA_KEY, ClassifierConfig, ClassifierNetwork, load_classifier
from autoguidance.evaluate.classifier_training import hold_out, num_training_images, shifted, train_classifier


class Blocks:
    """Images whose class is the quarter that is bright: learnt in a moment, in any size and number of channels."""

    def __init__(self, num=160, resolution=16, channels=1, num_classes=4, labelled=True):
        self.name, self.num_images, self.resolution, self.channels = "blocks", num, resolution, channels
        self.fingerprint = f"{num:064x}"
        self.class_names = tuple("abcdefgh"[:num_classes]) if labelled else ()
        self.num_classes = len(self.class_names)
        self.class_idx = np.arange(num) % num_classes if labelled else None
        generator = torch.Generator().manual_seed(0)
        self._images = torch.randint(0, 100, (num, channels, resolution, resolution), generator=generator).byte()
        half = resolution // 2
        for index, label in enumerate(np.arange(num) % num_classes):
            row, column = divmod(int(label), 2)
            self._images[index, :, row * half : (row + 1) * half, column * half : (column + 1) * half] += 100

    def read(self, indices):
        return self._images[torch.as_tensor(np.asarray(indices))]


@pytest.fixture(scope="module")
def digits():
    return open_data("digits")


@pytest.fixture(scope="module")
def trained(digits, tmp_path_factory):
    return train_classifier(digits, tmp_path_factory.mktemp("classifier") / "digits.safetensors", epochs=10)


def test_digits_are_told_apart(trained, digits):
    assert trained.info.held_out_accuracy >= 0.95
    assert trained.info.chance < 0.15
    assert trained.info.fingerprint == digits.fingerprint
    assert trained.info.num_images + trained.info.num_held_out == 1797
    assert trained.info.class_names == digits.class_names


@pytest.mark.slow
def test_digits_at_full_length(digits, tmp_path):
    assert train_classifier(digits, tmp_path / "c.safetensors").info.held_out_accuracy >= 0.97


def test_total_variance_is_the_number_of_features(trained, digits):
    (statistics,) = source_statistics([trained], digits)
    assert np.trace(statistics.covariance) == pytest.approx(64, rel=0.05)  # the scale is set on nine tenths of them


def gaussian_blur(images, sigma):
    taps = torch.exp(-(torch.arange(-3, 4) ** 2) / (2 * sigma**2))
    taps = (taps / taps.sum()).reshape(1, 1, 1, 7)
    padded = functional.pad(images.float(), (3, 3, 3, 3), mode="replicate")
    return functional.conv2d(functional.conv2d(padded, taps), taps.transpose(2, 3)).round().byte()


def test_distance_grows_with_noise_blur_mixing_and_missing_classes(trained, digits):
    (reference,) = source_statistics([trained], digits)
    images = digits.read(range(digits.num_images))
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))

    def distance(changed):
        return frechet_distance(batch_statistics([trained], [changed])[0], reference)

    noisy = [distance((images + 255 * s * noise).round().clamp(0, 255).byte()) for s in (0.0, 0.05, 0.1, 0.2, 0.4)]
    blurred = [distance(gaussian_blur(images, s)) for s in (0.1, 0.4, 0.6, 0.8, 1.2)]
    mixture = ((images.float() + images.roll(1, dims=0).float()) / 2).byte()
    mixed = [distance(torch.cat([mixture[:n], images[n:]])) for n in (0, 100, 300, 900, 1797)]
    dropped = [distance(images[torch.from_numpy(digits.class_idx >= n)]) for n in range(4)]
    for values in (noisy, blurred, mixed, dropped):
        assert values == sorted(values)
        assert values[0] < 1e-5
    floor = half_distance(Reference(network=trained, statistics=reference), digits)
    assert 0 < floor < 1
    assert min(noisy[2], blurred[2], mixed[2], dropped[1]) > 2 * floor


def test_same_seed_same_file_other_seed_other_file(tmp_path):
    torch.manual_seed(1)
    first = train_classifier(Blocks(), tmp_path / "a.safetensors", epochs=3)
    torch.manual_seed(2)  # the caller's generator must not matter, nor be touched
    before = torch.get_rng_state()
    with torch.no_grad():
        again = train_classifier(Blocks(), tmp_path / "b.safetensors", epochs=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert first.sha256 == again.sha256
    assert train_classifier(Blocks(), tmp_path / "c.safetensors", epochs=3, seed=1).sha256 != first.sha256
    assert first.info.held_out_accuracy > 0.5  # after seven steps


@pytest.mark.parametrize("resolution, channels", [(8, 3), (28, 1), (33, 3), (64, 3)])
def test_sizes_and_channels(tmp_path, resolution, channels):
    done = []
    source = Blocks(40, resolution, channels)
    network = train_classifier(source, tmp_path / "c.safetensors", epochs=1, progress=lambda *a: done.append(a[:2]))
    assert done[-1] == (36, 36)
    assert network(source.read([0, 1])).shape == (2, 64)
    config = network.info.config
    final = ClassifierNetwork(config).body(torch.zeros(1, channels, resolution, resolution))
    assert final.shape[1] == 64
    assert 3 <= final.shape[2] <= 6


def test_what_cannot_be_trained_on_is_refused(tmp_path):
    out = tmp_path / "c.safetensors"
    for source, message in (
        (Blocks(labelled=False), "no classes"),
        (Blocks(num_classes=1), "no classes"),
        (Blocks(num=3, num_classes=3), "fewer than two classes"),
        (Blocks(resolution=2), "4 to 256 pixels"),
    ):
        with pytest.raises(UserError, match=message):
            train_classifier(source, out)
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(UserError, match="file"):
        train_classifier(Blocks(), blocked / "c.safetensors")
    assert not out.exists()


def test_hold_out_takes_a_tenth_of_every_class():
    labels = np.repeat([0, 1, 2, 3], [100, 25, 3, 1])
    training, held_out = hold_out(labels, torch.Generator().manual_seed(0))
    assert np.bincount(labels[held_out], minlength=4).tolist() == [10, 2, 1, 0]
    assert sorted([*training, *held_out]) == list(range(len(labels)))


def test_length_of_training_depends_on_the_count_alone():
    assert [num_training_images(n) for n in (100, 1617, 18_000, 45_000, 1_000_000)] == [
        6000,
        60_000,
        72_000,
        180_000,
        400_000,
    ]
    assert num_training_images(500, epochs=3) == 1500


def test_shifts_move_whole_pixels_and_repeat_the_border():
    x = torch.arange(64.0).reshape(1, 1, 8, 8).expand(50, -1, -1, -1)
    moved = shifted(x, 2, torch.Generator().manual_seed(0))
    offsets = set()
    for image in moved[:, 0]:
        down, right = divmod(int(image[4, 4]) - int(x[0, 0, 4, 4]), 8)
        right, down = (right - 8, down + 1) if right > 4 else (right, down)
        rows = (torch.arange(8) + down).clamp(0, 7)
        columns = (torch.arange(8) + right).clamp(0, 7)
        assert torch.equal(image, x[0, 0][rows][:, columns])
        offsets.add((down, right))
    assert len(offsets) > 10
    assert max(max(abs(a), abs(b)) for a, b in offsets) == 2


def test_files_that_are_not_whole_are_refused(trained, tmp_path):
    network = ClassifierNetwork(ClassifierConfig(channels=1, resolution=8, num_classes=4))
    path = tmp_path / "c.safetensors"
    good = train_classifier(Blocks(40, 8), path, epochs=1)
    assert load_classifier(path).sha256 == good.sha256
    content = path.read_bytes()
    with safe_open(str(path), "pt") as file:
        text, weights = file.metadata()[METADATA_KEY], {k: file.get_tensor(k).clone() for k in network.state_dict()}

    def refused(message):
        with pytest.raises(UserError, match=message) as error:
            load_classifier(path)
        assert str(path) in str(error.value)

    path.write_bytes(content[: len(content) // 2])
    refused("cannot be read as a classifier")
    path.write_bytes(b"")
    refused("cannot be read as a classifier")
    save_file(weights, path)
    refused("not a classifier of autoguidance")
    save_file({**weights, "head.bias": torch.zeros(5)}, path, {METADATA_KEY: text})
    refused(r"head\.bias is torch\.float32 \[5\]")
    save_file({**weights, "head.bias": torch.full((4,), torch.nan)}, path, {METADATA_KEY: text})
    refused("NaN")
    save_file({name: weights[name] for name in weights if name != "head.bias"}, path, {METADATA_KEY: text})
    refused("head.bias is missing")
    save_file(weights, path, {METADATA_KEY: text.replace('"resolution": 8', '"resolution": "8"')})
    refused("integer")
    save_file(weights, path, {METADATA_KEY: "[1]"})
    refused("cannot be read as a classifier")
    path.unlink()
    refused("does not exist")
