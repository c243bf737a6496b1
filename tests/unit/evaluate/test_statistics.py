"""Streaming, merging and storing of feature statistics."""

import json
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autoguidance.errors import UserError
from autoguidance.evaluate import statistics as module
from autoguidance.evaluate.statistics import BLOCK, Accumulator, Statistics, is_statistics_file


def features(num=200, dimensions=7, seed=0, offset=0.0):
    generator = np.random.default_rng(seed)
    return offset + generator.normal(size=(num, dimensions)) @ generator.normal(size=(dimensions, dimensions))


@pytest.fixture(params=["numpy", "torch"])
def arithmetic(request, monkeypatch):
    """A test once with the arithmetic of the CPU and once with that of a GPU, which torch can do here too."""
    if request.param == "torch":
        original = module._in_place
        monkeypatch.setattr(module, "_in_place", lambda features: torch.as_tensor(original(features)))
    return request.param


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(0, 200), max_size=8))
def test_any_batching_gives_the_same(cuts):
    rows = features()
    accumulator = Accumulator()
    for part in np.split(rows, sorted(cuts)):
        accumulator.update(part)
    found = accumulator.statistics()
    assert found.num == 200
    np.testing.assert_allclose(found.mean, rows.mean(axis=0), rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(found.covariance, np.cov(rows, rowvar=False), rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("arithmetic")
def test_blocks_do_not_depend_on_batches():
    # Over two blocks, so that whole ones, a cut batch and a rest are there.
    rows = features(2 * BLOCK + 77, offset=3).astype(np.float32)
    found = []
    for size in (64, 1000, len(rows)):
        accumulator = Accumulator()
        for start in range(0, len(rows), size):
            accumulator.update(torch.from_numpy(rows[start : start + size]))
            if start == 0:
                assert accumulator.statistics().num == size  # asking in between moves nothing
        found.append(accumulator.statistics())
    for other in found[1:]:
        np.testing.assert_array_equal(other.mean, found[0].mean)
        np.testing.assert_array_equal(other.covariance, found[0].covariance)
    np.testing.assert_array_equal(found[0].covariance, found[0].covariance.T)
    wide = rows.astype(np.float64)
    np.testing.assert_allclose(found[0].mean, wide.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found[0].covariance, np.cov(wide, rowvar=False), rtol=1e-11, atol=1e-12)


def test_features_made_in_inference_mode_mix_with_others(arithmetic):
    rows = features(300).astype(np.float32)
    first, second = Accumulator(), Accumulator()
    with torch.inference_mode():
        first.update(torch.from_numpy(rows[:100]) * 1)
    first.update(rows[100:150])
    second.update(rows[150:])
    assert isinstance(first._block, torch.Tensor if arithmetic == "torch" else np.ndarray)
    first.merge(pickle.loads(pickle.dumps(second)))
    with torch.inference_mode():
        second.merge(first)
    for found, expected in ((first, rows), (second, np.concatenate([rows, rows[150:]]))):
        exact = np.cov(expected.astype(np.float64), rowvar=False)
        np.testing.assert_allclose(found.statistics().covariance, exact, rtol=1e-12, atol=1e-12)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_features_stay_on_their_device():
    rows = features(3 * BLOCK, dimensions=40, offset=100).astype(np.float32)
    on_cpu, on_gpu = (Accumulator("features of out") for _ in range(2))
    for start in range(0, BLOCK + 70, 70):
        on_gpu.update(torch.from_numpy(rows[start : start + 70]).cuda())
    seen = on_gpu.num
    on_cpu.update(rows[seen:])
    assert isinstance(on_gpu._block, torch.Tensor)
    assert on_gpu._block.is_cuda
    travelled = pickle.loads(pickle.dumps(on_gpu))
    assert isinstance(travelled._block, np.ndarray)
    assert isinstance(travelled._mean, np.ndarray)
    assert isinstance(travelled._scatter, np.ndarray)
    exact = np.cov(rows.astype(np.float64), rowvar=False)
    # Into an empty one, from the GPU into the CPU and back, and what has travelled.
    for parts in ((on_gpu, on_cpu), (on_cpu, on_gpu), (travelled, on_cpu), (on_cpu, travelled)):
        whole = Accumulator()
        for part in parts:
            whole.merge(part)
        found = whole.statistics()
        np.testing.assert_allclose(found.mean, rows.astype(np.float64).mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(found.covariance, exact, rtol=1e-10, atol=1e-11)
        np.testing.assert_array_equal(found.covariance, found.covariance.T)
    bad = torch.ones(4, 40, device="cuda")
    bad[2, 1] = np.nan
    with pytest.raises(UserError, match=rf"NaN or infinity for 1 of 4 images, first for image {seen + 2};"):
        on_gpu.update(bad)
    on_gpu.update(rows[seen:])  # from the CPU to a GPU that has begun
    np.testing.assert_allclose(on_gpu.statistics().covariance, exact, rtol=1e-10, atol=1e-11)


@pytest.mark.usefixtures("arithmetic")
def test_merge_is_the_pooled_set():
    rows = features(300, offset=5)
    parts = [Accumulator() for _ in range(3)]
    for accumulator, part in zip(parts, np.split(rows, [40, 41]), strict=True):
        accumulator.update(part)
    total = Accumulator()
    for accumulator in parts:
        total.merge(accumulator)
    total.merge(Accumulator())  # nothing seen: nothing changes
    np.testing.assert_allclose(total.statistics().covariance, np.cov(rows, rowvar=False), rtol=1e-12, atol=1e-12)
    # The parts are not touched by having been merged.
    np.testing.assert_allclose(
        parts[0].statistics().covariance, np.cov(rows[:40], rowvar=False), rtol=1e-12, atol=1e-12
    )


@pytest.mark.usefixtures("arithmetic")
def test_a_large_offset_costs_no_digits():
    # Multiples of 2^-10 below 2^20: exact in float64, so the covariance must not notice the offset.
    rows = np.round(features(1000) * 1024) / 1024
    accumulator = Accumulator()
    for part in np.split(rows + 2.0**30, 10):
        accumulator.update(part)
    naive = (rows + 2.0**30).T @ (rows + 2.0**30) - 1000 * np.outer(*[(rows + 2.0**30).mean(axis=0)] * 2)
    exact = np.cov(rows, rowvar=False)
    np.testing.assert_allclose(accumulator.statistics().covariance, exact, rtol=1e-6, atol=1e-7 * exact.max())
    assert np.abs(naive / 999 - exact).max() > 1  # the textbook formula has no digit left


def test_n_minus_one_and_float64_from_float32():
    found = Statistics.from_features(torch.tensor([[0.0], [2.0]]))
    assert found.covariance.item() == 2.0
    assert found.mean.dtype == found.covariance.dtype == np.float64


def test_nan_features_are_named():
    accumulator = Accumulator("classifier features of out")
    accumulator.update(features(10))
    bad = features(10)
    bad[3, 2], bad[7, 0] = np.nan, np.inf
    with pytest.raises(
        UserError, match=r"classifier features of out: NaN or infinity for 2 of 10 images, first for image 13"
    ):
        accumulator.update(bad)
    np.testing.assert_allclose(accumulator.statistics().mean, features(10).mean(axis=0))


def test_wrong_shapes_and_too_few():
    accumulator = Accumulator()
    with pytest.raises(UserError, match="0 images have no covariance"):
        accumulator.statistics()
    accumulator.update(features(1))
    with pytest.raises(UserError, match="1 images have no covariance"):
        accumulator.statistics()
    with pytest.raises(UserError, match=r"shape \[3, 6\]; expected \[n, 7\]"):
        accumulator.update(np.zeros((3, 6)))
    other = Accumulator()
    other.update(np.zeros((3, 6)))
    with pytest.raises(UserError, match="6 dimensions"):
        accumulator.merge(other)
    for mean, covariance in (
        (np.zeros(2), np.eye(3)),
        (np.zeros((1, 2)), np.eye(2)),
        (np.array([0, np.nan]), np.eye(2)),
    ):
        with pytest.raises(UserError):
            Statistics(mean, covariance, 5)
    with pytest.raises(UserError, match="not symmetric"):
        Statistics(np.zeros(2), np.array([[1.0, 0.5], [0.0, 1.0]]), 5)


def test_save_and_load(tmp_path):
    record = {"features": "pixels", "features_sha256": "ab", "source": "digits", "source_sha256": "cd"}
    saved = Statistics.from_features(features(), record)
    path = tmp_path / "reference.npz"
    saved.save(path)
    loaded = Statistics.load(path)
    np.testing.assert_array_equal(loaded.mean, saved.mean)
    np.testing.assert_array_equal(loaded.covariance, saved.covariance)
    assert (loaded.num, loaded.record) == (200, record)
    assert is_statistics_file(path)
    assert [file.name for file in tmp_path.iterdir()] == ["reference.npz"]


class _Payload:
    ran = False

    def __reduce__(self):
        return (setattr, (_Payload, "ran", True))


def test_damaged_files_are_refused_and_run_nothing(tmp_path):
    path = tmp_path / "reference.npz"
    Statistics.from_features(features()).save(path)
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:200] + bytes(64) + whole[264:], b"", b"not a zip"):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"reference\.npz.*autoguidance stats"):
            Statistics.load(path)
    with pytest.raises(UserError, match="does not exist"):
        Statistics.load(tmp_path / "absent.npz")
    np.savez(path, images=np.zeros((2, 1, 8, 8), np.uint8))
    assert not is_statistics_file(path)
    with pytest.raises(UserError, match="not a whole statistics file"):
        Statistics.load(path)
    good = {"covariance": np.eye(2), "num": np.int64(9), "record": np.array(json.dumps({"format_version": 1}))}
    np.savez(path, mean=np.array([_Payload()], dtype=object), **good)
    with pytest.raises(UserError, match="cannot be read"):
        Statistics.load(path)
    assert not _Payload.ran
    np.savez(path, mean=np.zeros(2), **{**good, "record": np.array(json.dumps({"format_version": 2}))})
    with pytest.raises(UserError, match="format version 2"):
        Statistics.load(path)
