"""Solvers by name, and from the description that records keep."""

from collections.abc import Mapping
from typing import Any

import torch

from autoguidance.errors import UserError
from autoguidance.sample.euler import Euler
from autoguidance.sample.heun import Heun
from autoguidance.sample.solver import Solver

SOLVERS: dict[str, type[Solver]] = {"heun": Heun, "euler": Euler}


def make_solver(name: str, **settings: Any) -> Solver:
    """A solver by its name. Raises UserError for an unknown name or setting, or one out of range."""
    if name not in SOLVERS:
        raise UserError(f"unknown solver {name!r}; choose one of {', '.join(sorted(SOLVERS))}")
    try:
        return SOLVERS[name](**settings)
    except TypeError as error:
        raise UserError(f"solver {name}: {error}; correct the setting") from None


def solver_from_description(description: Mapping[str, Any]) -> Solver:
    """The solver that `Solver.describe` described."""
    settings = {key: float("inf") if value == "inf" else value for key, value in description.items() if key != "name"}
    dtypes = {"float32": torch.float32, "float64": torch.float64}
    dtype = str(settings.get("dtype", "float32"))
    if dtype not in dtypes:
        raise UserError(f"unknown solver dtype {dtype!r}; choose float32 or float64")
    settings["dtype"] = dtypes[dtype]
    return make_solver(str(description.get("name")), **settings)
