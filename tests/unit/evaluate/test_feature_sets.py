"""One pass over the images, shared by processes, and never twice."""

import os

import numpy as np
import pytest
import torch
from shared_work import shared

from autoguidance.data import open_data
from autoguidance.errors import UserError
from autoguidance.evaluate import FeatureCache, Images, PixelFeatures, evaluate_images, feature_sets, source_references
from autoguidance.evaluate.feature_sets import kept_positions


class Counting:
    """A feature network that counts the images that it sees."""

    num_features = 6

    def __init__(self, name="counting"):
        self.name, self.sha256 = name, (name + "0" * 64)[:64]
        self.seen = 0

    def __call__(self, images):
        self.seen += len(images)
        rows = images.flatten(1).float()
        return torch.stack([rows[:, k::7].mean(dim=1) + rows[:, k] for k in range(6)], dim=1)


def pixels(num, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (num, 1, 8, 8), generator=generator).byte()


def as_images(every, key="set", batch=50):
    return Images(
        num=len(every),
        batches=lambda part: every[part.start : part.stop].split(batch),
        key=None if key is None else {"name": key},
    )


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("batch", [7, 64, 500])
def test_the_same_for_any_number_of_processes_and_batch_size(size, batch):
    every = pixels(300)
    network = Counting()
    (whole,) = feature_sets(as_images(every), [network], keep=100)
    for (found,) in shared(
        size, lambda processes: feature_sets(as_images(every, batch=batch), [network], keep=100, processes=processes)
    ):
        assert found.statistics.num == 300
        # Features depend on the image alone, so those kept are equal; statistics are pooled, so equal but for rounding.
        np.testing.assert_array_equal(found.features, whole.features)
        np.testing.assert_allclose(found.statistics.covariance, whole.statistics.covariance, rtol=1e-12, atol=1e-9)
        if size == 1:
            np.testing.assert_array_equal(found.statistics.covariance, whole.statistics.covariance)
    rows = network(every).numpy()
    np.testing.assert_allclose(whole.statistics.covariance, np.cov(rows.T.astype(np.float64)), rtol=1e-12)
    np.testing.assert_array_equal(whole.features, rows[kept_positions(300, 100)])


@pytest.mark.parametrize("size", [1, 2, 3])
def test_all_figures_are_the_same_for_any_number_of_processes(size):
    digits = open_data("digits")
    network = PixelFeatures(channels=1, resolution=8)
    sets = [as_images(digits.read(range(start, start + 300)), key=str(start)) for start in (0, 300)]

    def measure(processes):
        references = source_references([network], digits, keep=400, processes=processes)
        return evaluate_images(sets, references, metrics=["fd", "kid", "prdc"], processes=processes).row

    alone = measure(None)
    for row in shared(size, measure):
        assert row.keys() == alone.keys()
        for name in ("fd", "kid", "precision", "recall", "density", "coverage"):
            assert row[f"{name}_repeats"] == pytest.approx(alone[f"{name}_repeats"], abs=1e-6, rel=0), name
            assert len(row[f"{name}_repeats"]) == 2
            assert row[f"{name}_min"] == min(row[f"{name}_repeats"])
            assert row[name] == pytest.approx(np.mean(row[f"{name}_repeats"]))
            assert row[f"{name}_std"] == pytest.approx(np.std(row[f"{name}_repeats"], ddof=1), abs=1e-12)


def test_nothing_is_computed_twice(tmp_path):
    cache = FeatureCache(tmp_path)
    network, other = Counting(), Counting("other")
    every = pixels(130)
    padded = 192  # in micro-batches of 64
    (first,) = feature_sets(as_images(every), [network], cache=cache)
    assert network.seen == padded
    (again,) = feature_sets(as_images(every), [network], cache=cache)
    assert network.seen == padded
    np.testing.assert_array_equal(again.statistics.covariance, first.statistics.covariance)
    # Features are another matter, and only the network that lacks them runs.
    feature_sets(as_images(every), [network], keep=130, cache=cache)
    found = feature_sets(as_images(every), [network, other], keep=130, cache=cache)
    assert (network.seen, other.seen) == (2 * padded, padded)
    np.testing.assert_array_equal(found[0].features, network(every).numpy())
    # Other images, another network, or images that nobody can name, are not in the cache.
    counted = network.seen
    feature_sets(as_images(every, key="changed"), [network], cache=cache)
    feature_sets(as_images(every, key=None), [network], cache=cache)
    assert network.seen == counted + 2 * padded
    network.sha256 = "1" * 64
    feature_sets(as_images(every), [network], cache=cache)
    assert network.seen == counted + 3 * padded


def test_all_metrics_use_one_pass_and_the_cache(tmp_path, monkeypatch):
    from autoguidance.evaluate import evaluation

    network = Counting()
    made, real = pixels(100), open_data("digits")
    cache = FeatureCache(tmp_path)
    radii = []
    original = evaluation.neighbourhoods
    monkeypatch.setattr(evaluation, "neighbourhoods", lambda f, **o: radii.append(len(f)) or original(f, **o))
    rows = []
    for _ in range(2):
        references = source_references([network], real, keep=200, cache=cache)
        sets = [as_images(made[:50], "a"), as_images(made[50:], "b")]
        rows.append(evaluate_images(sets, references, metrics=["fd", "kid", "prdc"], cache=cache).row)
    assert network.seen == 64 * 29 + 64 + 64  # 1797 real images and twice 50, once
    assert radii == [200, 50, 50]
    assert rows[0] == rows[1]


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "other key", "not an archive"])
def test_a_damaged_entry_is_computed_again(tmp_path, damage):
    cache, network, every = FeatureCache(tmp_path), Counting(), pixels(64)
    (first,) = feature_sets(as_images(every), [network], keep=64, cache=cache)
    entries = sorted(tmp_path.iterdir())
    assert len(entries) == 2  # statistics and features
    for entry in entries:
        content = bytearray(entry.read_bytes())
        if damage == "flipped":
            place = content.index(b"\x93NUMPY", content.index(b"features.npy") if b"features.npy" in content else 0)
            content[place + 200] ^= 1
        changed = {
            "cut": content[: len(content) // 2],
            "flipped": content,
            "empty": b"",
            "not an archive": b"hello",
            "other key": entries[1 - entries.index(entry)].read_bytes(),
        }[damage]
        entry.write_bytes(changed)
    (found,) = feature_sets(as_images(every), [network], keep=64, cache=FeatureCache(tmp_path))
    assert network.seen == 128
    np.testing.assert_array_equal(found.features, first.features)
    feature_sets(as_images(every), [network], keep=64, cache=FeatureCache(tmp_path))
    assert network.seen == 128  # it was written anew
    assert len(list(tmp_path.iterdir())) == 2


def test_writers_at_the_same_time_leave_whole_entries(tmp_path):
    every = pixels(64)
    network = Counting()
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as pool:
        found = list(
            pool.map(lambda _: feature_sets(as_images(every), [network], cache=FeatureCache(tmp_path))[0], range(32))
        )
    assert all(np.array_equal(f.statistics.mean, found[0].statistics.mean) for f in found)
    assert [path.suffix for path in tmp_path.iterdir()] == [".npz"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_costs_nothing_but_time(tmp_path):
    tmp_path.chmod(0o500)
    (found,) = feature_sets(as_images(pixels(64)), [Counting()], cache=FeatureCache(tmp_path / "features"))
    assert found.statistics.num == 64


def test_a_file_in_the_place_of_the_folder_costs_nothing_but_time(tmp_path, caplog):
    (tmp_path / "features").write_text("mine")
    network = Counting()
    feature_sets(as_images(pixels(64)), [network], keep=64, cache=FeatureCache(tmp_path / "features"))
    assert (tmp_path / "features").read_text() == "mine"
    assert len([record for record in caplog.records if "not kept" in record.message]) == 1


def test_a_mistake_of_one_process_ends_all():
    bad = pixels(90)

    class Failing(Counting):
        def __call__(self, images):
            found = super().__call__(images)
            return torch.where((images[:, 0, 0, 0] == bad[80, 0, 0, 0])[:, None], float("nan"), found)

    def work(processes):
        try:
            feature_sets(as_images(bad), [Failing()], processes=processes)
        except UserError as error:
            return str(error)
        return ""

    messages = shared(3, work)
    assert "NaN or infinity" in messages[0]
    assert len(set(messages)) == 1


def test_images_that_do_not_come_are_noticed():
    short = Images(num=100, batches=lambda part: pixels(90).split(64))
    with pytest.raises(UserError, match="90 images came instead of 100"):
        feature_sets(short, [Counting()])


def test_metrics_over_pairs_need_features():
    network = Counting()
    references = source_references([network], open_data("digits"))
    with pytest.raises(UserError, match="--keep-features"):
        evaluate_images([as_images(pixels(20))], references, metrics=["kid"])
    with pytest.raises(UserError, match="metrics fid: choose among fd, kid, prdc"):
        evaluate_images([as_images(pixels(20))], references, metrics=["fid"])
