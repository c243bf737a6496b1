"""Seeds and classes as text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoguidance.errors import UserError
from autoguidance.sample import ClassSelection, parse_seeds


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("0-3,7", [0, 1, 2, 3, 7]),
        ("5", [5]),
        (" 1 , 2-2", [1, 2]),
        ("3,1,1", [3, 1, 1]),
        ("4294967295", [2**32 - 1]),
    ],
)
def test_seeds(text: str, seeds: list[int]) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize(
    "text", ["", ",", "1,", "-1", "1-", "3-1", "1-2-3", "a", "1.5", "0x3", "1e3", "0-99999999999", "1\n-x"]
)
def test_bad_seeds_are_refused_in_one_line(text: str) -> None:
    with pytest.raises(UserError, match="seeds") as caught:
        parse_seeds(text)
    assert "\n" not in str(caught.value)


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 20)), min_size=1, max_size=6))
def test_text_of_ranges_comes_back(ranges: list[tuple[int, int]]) -> None:
    text = ",".join(f"{low}-{low + more}" if more else str(low) for low, more in ranges)
    assert parse_seeds(text) == [seed for low, more in ranges for seed in range(low, low + more + 1)]


@pytest.mark.parametrize(
    ("choice", "num_classes", "name"),
    [
        (None, 10, "random"),
        ("random", 10, "random"),
        ("random", 0, "none"),
        ("balanced", 3, "balanced"),
        ("3,5-7", 10, "3,5,6,7"),
        (2, 10, "2"),
        ([2, 1], 10, "2,1"),
    ],
)
def test_names_of_selections(choice: str | int | list[int] | None, num_classes: int, name: str) -> None:
    assert ClassSelection(choice, num_classes).name == name
