"""Weighted sums of snapshots: what is summed, what is copied, and what is refused."""

import weakref
from collections.abc import Iterator, Mapping

import numpy as np
import pytest
import torch
from torch import Tensor

from autoguidance.ema import WeightedSums
from autoguidance.errors import UserError


def state(value: float, **changes: Tensor) -> dict[str, Tensor]:
    return {
        "w": torch.full((3, 2), float(value)),
        "freqs": torch.tensor([float(value)]),
        "n": torch.tensor(int(value)),
        **changes,
    }


def is_buffer(name: str) -> bool:
    return name == "freqs"


def test_sums_and_copies() -> None:
    sums = WeightedSums(2)
    seen: list[int] = []
    sums.add(
        [state(1), state(2)],
        np.array([[1.0, 0.5], [2.0, 0.0]]),
        labels=["a", "b"],
        is_buffer=is_buffer,
        progress=seen.append,
    )
    sums.add([state(4)], np.array([[-1.0, 3.0]]), labels=["c"], is_buffer=is_buffer)
    first, second = sums.output(0), sums.output(1)
    torch.testing.assert_close(first["w"], torch.full((3, 2), 1.0 * 1 + 2 * 2 - 4), rtol=0, atol=0)
    torch.testing.assert_close(second["w"], torch.full((3, 2), 0.5 + 0 + 12), rtol=0, atol=0)
    assert (float(first["freqs"]), int(first["n"])) == (4, 4)  # of the last snapshot
    assert first["n"].dtype == torch.int64
    assert sum(seen) == 2 * (6 * 4 + 4 + 8)


def test_a_weight_of_one_gives_the_snapshot_itself() -> None:
    value = torch.randn(70_000, generator=torch.Generator().manual_seed(0)).half()  # more than one chunk
    sums = WeightedSums(1)
    for weight, other in ((0.0, value * 3), (1.0, value), (0.0, value * 5)):
        sums.add([{"w": other}], np.array([[weight]]), labels=["x"])
    assert sums.dtypes == {torch.float16}
    assert torch.equal(sums.output(0)["w"], value.float())


def test_one_tensor_of_each_snapshot_at_a_time() -> None:
    """A lazy mapping is asked for every tensor once, and the one before it is no longer held."""
    read: list[weakref.ref[Tensor]] = []

    class Lazy(Mapping[str, Tensor]):
        def __getitem__(self, name: str) -> Tensor:
            assert all(tensor() is None for tensor in read), "a tensor read before is still held"
            tensor = torch.ones(4)
            read.append(weakref.ref(tensor))
            return tensor

        def __iter__(self) -> Iterator[str]:
            return iter(("a", "b", "c"))

        def __len__(self) -> int:
            return 3

    sums = WeightedSums(2)
    sums.add([Lazy()], np.ones((1, 2)), labels=["lazy"])
    assert len(read) == 3
    assert set(sums.output(0)) == {"a", "b", "c"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"extra": torch.ones(1)}, r"^second is of another network .*extra differs"),
        ({"w": torch.ones(2, 3)}, r"^second is of another network .*w differs"),
        ({"freqs": torch.ones(2)}, r"^second is of another network .*freqs differs"),
        ({"w": torch.full((3, 2), torch.nan)}, r"^second: w holds values that are not finite"),
        ({"w": torch.full((3, 2), torch.inf)}, r"^second: w holds values that are not finite"),
    ],
)
@pytest.mark.parametrize("together", [True, False])
def test_snapshots_that_cannot_be_summed(changes: dict[str, Tensor], message: str, together: bool) -> None:
    sums, bad = WeightedSums(1), state(2, **changes)
    before = [state(1)] if together else []
    if not together:
        sums.add([state(1)], np.ones((1, 1)), labels=["first"], is_buffer=is_buffer)
    with pytest.raises(UserError, match=message):
        sums.add(
            [*before, bad],
            np.zeros((len(before) + 1, 1)),
            labels=["first", "second"][-len(before) - 1 :],
            is_buffer=is_buffer,
        )
