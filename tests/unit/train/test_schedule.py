"""When snapshots are taken."""

from itertools import pairwise

import pytest

from autoguidance.train.config import TrainConfig
from autoguidance.train.schedule import learning_rate, num_steps, snapshot_times


@pytest.mark.parametrize(("num_images", "batch_size"), [(150_000, 64), (2**31, 2048), (999, 10), (5, 8)])
def test_snapshots_lie_on_whole_steps_and_end_with_the_run(num_images: int, batch_size: int) -> None:
    times = snapshot_times(num_images, batch_size)
    assert list(times) == sorted(set(times))
    assert all(time > 0 and time % batch_size == 0 for time in times)
    assert times[-1] == num_steps(num_images, batch_size) * batch_size >= num_images


def test_the_early_part_has_the_usual_guides_and_the_rest_is_regular() -> None:
    times = snapshot_times(2**20, 64)
    for part in (64, 32, 16, 8, 4, 2, 1):
        assert 2**20 // part in times
    assert 24 <= len(times) <= 32
    late = [time for time in times if time >= 2**20 // 8]
    gaps = [after - before for before, after in pairwise(late)]
    assert max(gaps) - min(gaps) <= 2 * 64


def test_the_rate_starts_at_zero_and_does_not_know_the_length() -> None:
    short = TrainConfig(num_images=1000, rampup_images=100, batch_size=10, ref_batches=20.0)
    longer = TrainConfig(num_images=100_000, rampup_images=100, batch_size=10, ref_batches=20.0)
    assert learning_rate(short, 0) == 0
    assert learning_rate(short, 100) == learning_rate(short, 200) == short.learning_rate
    assert learning_rate(short, 800) == pytest.approx(short.learning_rate / 2)
    starts = range(0, 1000, 10)
    assert [learning_rate(short, n) for n in starts] == [learning_rate(longer, n) for n in starts]
    assert learning_rate(TrainConfig(rampup_images=0), 0) > 0
