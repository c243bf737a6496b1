"""Quality against cost: is guidance worth its evaluations, or would more steps of the main model have done as much?

Rows: unguided, CFG, CFG + interval, autoguidance with guides one and two sizes smaller, and autoguidance in an
interval, each with a half, once and twice the asked number of Heun steps (unguided also with four times).
`efficiency` in results.json has each row's `flops`, operations of the networks per image; the Pareto front is what
no other row beats in both distance and operations.

Reference: Karras et al. 2024, arXiv 2406.02507, Section 5 (the guide's cost).
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from autoguidance.errors import UserError
from autoguidance.study.cost import evaluation_flops
from autoguidance.study.experiment import Experiment
from autoguidance.train.presets import smaller
from autoguidance.tune import SearchSpace, early_snapshots


def efficiency(experiment: Experiment) -> dict[str, Any]:
    """Train, compare, write; returns the content of results.json; its rows have `flops` and `pareto`."""
    usual = experiment.config.num_steps
    if usual < 2:
        raise UserError(f"--steps {usual}: the study also takes half as many; give at least 2")
    runs = {
        "main": experiment.training(experiment.preset, 1, 0),
        "guide": experiment.training(experiment.guide_preset, 1 / 4, 1),
    }
    with suppress(UserError):  # there may be nothing smaller
        runs["smallest"] = experiment.training(smaller(experiment.guide_preset), 1 / 4, 3)
    if experiment.labelled:
        runs["unconditional"] = experiment.training(experiment.guide_preset, 1, 2, unconditional=True)
    experiment.train(runs)
    main = experiment.guide("main")
    guides = {
        name: tuple(early_snapshots(str(experiment.out / name), 1 / 16, 1))
        for name in runs
        if name in ("guide", "smallest")
    }
    unconditional = experiment.guide("unconditional") if experiment.labelled else None
    most = 4 * usual
    spaces = [
        SearchSpace("unguided", main, replace(experiment.solver, num_steps=most), label=f"unguided, {most} steps")
    ]
    for steps in (usual // 2, usual, 2 * usual):
        solver = replace(experiment.solver, num_steps=steps)
        spaces.append(SearchSpace("unguided", main, solver, label=f"unguided, {steps} steps"))
        if unconditional is not None:
            for kind in ("cfg", "cfg+interval"):
                spaces.append(SearchSpace(kind, main, solver, (), unconditional, label=f"{kind}, {steps} steps"))
        for name, sources in guides.items():
            title = "autoguidance" if name == "guide" else "autoguidance, smallest guide"
            spaces.append(SearchSpace("autoguidance", main, solver, sources, label=f"{title}, {steps} steps"))
        spaces.append(
            SearchSpace(
                "autoguidance+interval", main, solver, guides["guide"], label=f"autoguidance+interval, {steps} steps"
            )
        )
    found = experiment.compare(spaces)
    costs = {}
    for name, pair in found.best.items():
        measured = found.measured[name][0]
        guide = pair.guide if pair.guide and pair.weight != 1 else pair.unconditional
        flops = measured.evaluations_main * evaluation_flops(pair.main)
        if guide is not None:
            flops += measured.evaluations_guide * evaluation_flops(guide)
        costs[name] = flops
    front = pareto({row["method"]: (costs[row["method"]], row["fd"]) for row in found.rows(experiment.out)})
    return experiment.finish(
        found, efficiency=[{"method": name, "flops": flops, "pareto": name in front} for name, flops in costs.items()]
    )


def pareto(points: Mapping[str, tuple[float, float]]) -> Sequence[str]:
    """Names of the points (cost, distance) than which no other is both at most as dear and at most as far, cheapest first."""
    front = []
    best = float("inf")
    for name, (_, distance) in sorted(points.items(), key=lambda item: item[1]):
        if distance < best:
            front.append(name)
            best = distance
    return front
