"""One suite for every solver: what it costs, what it refuses, and that its record brings it back."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from autoguidance.errors import UserError
from autoguidance.sample import SOLVERS, Counted, Solver, make_solver, sample, solver_from_description

EVALUATIONS = {"heun": lambda num_steps: 2 * num_steps - 1, "euler": lambda num_steps: num_steps}


def test_every_solver_is_covered() -> None:
    assert set(EVALUATIONS) == set(SOLVERS)


@pytest.fixture(params=sorted(SOLVERS))
def solver(request: pytest.FixtureRequest) -> Solver:
    return make_solver(request.param, num_steps=5)


@pytest.mark.parametrize("num_steps", [1, 2, 5])
@pytest.mark.parametrize("churn", [0.0, 2.0])
def test_number_of_evaluations(solver: Solver, linear: Callable[..., Any], num_steps: int, churn: float) -> None:
    denoiser = linear(0.5)
    noise = torch.ones(2, 1, 8, 8)
    replace(solver, num_steps=num_steps, churn=churn).integrate(denoiser, noise, randn=lambda: torch.zeros(2, 1, 8, 8))
    assert len(denoiser.calls) == EVALUATIONS[solver.name](num_steps)


def test_network_is_asked_in_float32_with_the_schedules_sigma(solver: Solver, linear: Callable[..., Any]) -> None:
    denoiser = linear(0.5)
    seen = []
    chosen = replace(solver, dtype=torch.float64)
    result = chosen.integrate(
        denoiser, torch.ones(2, 1, 8, 8), callback=lambda index, sigma, x: seen.append((index, sigma, x.dtype))
    )
    assert result.dtype == torch.float64
    assert all(sigma.dtype == torch.float32 for _, sigma, _ in denoiser.calls)
    indices, sigmas, dtypes = zip(*seen, strict=True)
    assert indices == tuple(range(6))
    assert sigmas[0] == 80
    assert sigmas[-2] == pytest.approx(0.002)
    assert sigmas[-1] == 0
    assert list(sigmas) == sorted(sigmas, reverse=True)
    assert set(dtypes) == {torch.float64}
    assert {float(sigma) for _, sigma, _ in denoiser.calls} == {float(torch.tensor(s)) for s in sigmas[:-1]}


def test_deterministic(solver: Solver, network: Callable[..., Any]) -> None:
    model = network(0)
    for chosen in (solver, replace(solver, churn=3.0)):
        first, second = (sample(model, range(4), solver=chosen, decode=False) for _ in range(2))
        assert torch.equal(first, second)
    calm, churned = (sample(model, [1], solver=s, decode=False) for s in (solver, replace(solver, churn=3.0)))
    assert not torch.equal(calm, churned)


def test_counts_add_up(solver: Solver, network: Callable[..., Any]) -> None:
    counted = Counted(network(0))
    sample(counted, range(64), solver=solver, decode=False, batch_size=32)
    # Micro-batches of this network hold 64 images; a smaller batch size must not compute the padding twice.
    assert counted.num_evaluations == 64 * EVALUATIONS[solver.name](5)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_steps": 1},
        {"sigma_min": 0.01, "sigma_max": 10.0, "rho": 3.0},
        {"churn": 10.0, "churn_min": 0.05, "churn_max": 20.0, "churn_noise": 1.007},
        {"dtype": torch.float64},
    ],
)
def test_description_round_trip_through_json(solver: Solver, settings: dict[str, Any]) -> None:
    chosen = replace(solver, **settings)
    description = json.loads(json.dumps(chosen.describe(), allow_nan=False))
    assert description["name"] == solver.name
    assert solver_from_description(description) == chosen


@pytest.mark.parametrize(
    "settings",
    [
        {"num_steps": 0},
        {"num_steps": -3},
        {"num_steps": 8.5},
        {"sigma_min": 0.0},
        {"sigma_min": -1.0},
        {"sigma_min": math.nan},
        {"sigma_max": 0.001},
        {"sigma_max": math.inf},
        {"sigma_max": math.nan},
        {"rho": 0.0},
        {"rho": -7.0},
        {"rho": math.inf},
        {"rho": math.nan},
        {"churn": -1.0},
        {"churn": math.inf},
        {"churn": math.nan},
        {"churn_min": -0.1},
        {"churn_min": 2.0, "churn_max": 1.0},
        {"churn_min": math.nan},
        {"churn_max": math.nan},
        {"churn_noise": 0.0},
        {"churn_noise": math.nan},
        {"dtype": torch.float16},
        {"steps": 3},
    ],
)
@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_bad_settings_are_refused_in_one_line(name: str, settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"choose|correct") as caught:
        make_solver(name, **settings)
    assert "\n" not in str(caught.value)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UserError, match="unknown solver 'dpm'; choose one of euler, heun"):
        make_solver("dpm")
    with pytest.raises(UserError, match="unknown solver"):
        solver_from_description({"num_steps": 4})
    with pytest.raises(UserError, match="dtype"):
        solver_from_description({"name": "heun", "dtype": "int8"})


def test_churn_without_noise_is_refused(solver: Solver, linear: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match="churn needs"):
        replace(solver, churn=1.0).integrate(linear(0.5), torch.ones(1, 1, 8, 8))
