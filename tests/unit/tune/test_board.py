"""Units, axes, and that nothing of Optuna is loaded before it is needed. What boards do is in tests/contracts."""

import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from autoguidance.errors import UserError
from autoguidance.tune.board import MemoryBoard, Unit, open_board


def test_a_unit_is_made_from_any_mapping_and_sorted() -> None:
    unit = Unit.of({"weight": np.float64(1.5), "ema_main": 1, "guide": "g"}, first_seed=np.int64(7), num_images=10)  # pyright: ignore
    assert unit == Unit((("ema_main", 1.0), ("guide", "g"), ("weight", 1.5)), 7, 10)
    assert [type(value) for _, value in unit.setting] == [float, str, float]
    assert hash(unit) == hash(Unit.of(unit.values, first_seed=7, num_images=10))


@pytest.mark.parametrize(
    ("setting", "first_seed", "num_images"),
    [
        ((("b", 1.0), ("a", 1.0)), 0, 1),
        ((("a", 1.0), ("a", 2.0)), 0, 1),
        ((("a", math.nan),), 0, 1),
        ((("a", math.inf),), 0, 1),
        ((("a", 1.0),), -1, 1),
        ((("a", 1.0),), 0, 0),
    ],
)
def test_units_that_make_no_sense(setting: Any, first_seed: int, num_images: int) -> None:
    with pytest.raises(UserError, match="give"):
        Unit(setting, first_seed, num_images)


@pytest.mark.parametrize(
    "values", [(), (1.0,), (2.0, 1.0), (1.0, math.inf), (math.nan, 1.0), ("a", "a"), ("a", 1.0), (1, 2, 3)]
)
def test_axes_that_make_no_sense(values: Any) -> None:
    with pytest.raises(UserError, match=r"axis w: .* give the lowest and the highest number, or names"):
        open_board(None, "s", description={}, axes={"w": values})


@pytest.mark.parametrize("values", [(1.0, 1.0), (0, 3), ("only",), ("a", "b", "c")])
def test_axes_that_make_sense(values: Any) -> None:
    assert isinstance(open_board(None, "s", description={}, axes={"w": values}), MemoryBoard)


def test_optuna_is_imported_by_the_shared_board_only() -> None:
    program = (
        "import sys, autoguidance, autoguidance.tune; from autoguidance.tune.board import open_board\n"
        "open_board(None, 's', description={}, axes={'w': (0, 1)})\n"
        "print('optuna' in sys.modules, 'sqlalchemy' in sys.modules)\n"
        "sys.modules['optuna'] = None\n"
        "open_board(sys.argv[1], 's', description={}, axes={'w': (0, 1)})"
    )
    run = subprocess.run([sys.executable, "-c", program, "s.jsonl"], capture_output=True, text=True, check=False)
    assert run.stdout.split() == ["False", "False"]
    assert "UserError: a shared search needs Optuna; run `pip install optuna`" in run.stderr
