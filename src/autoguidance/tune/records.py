"""What a search writes down: settings as results.json names them, rows with spread, the protocol, how sensitive the best is."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from autoguidance.evaluate import Protocol, Reference
from autoguidance.evaluate.classifier import ClassifierFeatures
from autoguidance.evaluate.evaluation import summary as metric_summary
from autoguidance.sample import Solver
from autoguidance.tune.board import State
from autoguidance.tune.contest import Contest
from autoguidance.tune.measuring import Measured, Task
from autoguidance.zoo import Pair

NEAR = 1.05
"""A setting is as good as the best for most purposes where its distance is within 5 %: about twice the usual spread of a distance."""


def describe_pair(pair: Pair, out: Path) -> dict[str, Any]:
    """A pair as results.json names it: models relative to the result's folder, one guide and its weight; where both guide, CFG too."""
    prefix = f"{out}/"
    guide = pair.guide or pair.unconditional
    both = {}
    if pair.guide is not None and pair.unconditional is not None:
        both = {"unconditional": pair.unconditional.removeprefix(prefix), "cfg_weight": pair.cfg_weight}
    return {
        "method": pair.method,
        "main": pair.main.removeprefix(prefix),
        "guide": None if guide is None else guide.removeprefix(prefix),
        "weight": pair.weight if pair.guide else pair.cfg_weight,
        "interval": None if pair.interval is None else list(pair.interval),
        **both,
        **{name: str(value) for name in ("main_degraded", "guide_degraded") if (value := getattr(pair, name))},
    }


def describe_task(task: Task, out: Path) -> dict[str, Any]:
    """A measurement before its result is known."""
    return {**describe_pair(task.pair, out), "first_seed": task.first_seed, "num_images": task.num_images}


def summary(measured: Sequence[Measured]) -> dict[str, Any]:
    """Mean, spread (n - 1) and minimum over repeats, and the cost per image."""
    distances = [m.fd for m in measured]
    figures: dict[str, Any] = {}
    for name in measured[0].figures:
        figures |= metric_summary(name, [m.figures[name] for m in measured])
    return {
        **figures,
        "fd": float(np.mean(distances)),
        "fd_std": float(np.std(distances, ddof=1)) if len(distances) > 1 else None,
        "fd_min": min(distances),
        "fd_repeats": distances,
        "evaluations_main": measured[0].evaluations_main,
        "evaluations_guide": measured[0].evaluations_guide,
        "seconds_per_image": float(np.mean([m.seconds_per_image for m in measured])),
    }


def measured_protocol(
    reference: Reference,
    *,
    num_images: int,
    repeats: int,
    first_seed: int,
    solver: Solver,
    class_sampling: str,
    device: str,
    notes: Sequence[str],
) -> Protocol:
    """How a comparison was measured.

    Args:
        reference: the real set; its record names it.
        num_images, repeats, first_seed: of the generated images.
        notes: what else limits the figures.
    """
    network, record = reference.network, reference.statistics.record
    more = []
    if isinstance(network, ClassifierFeatures):
        more.append(
            "features of a classifier trained on the same data "
            f"(held-out accuracy {network.info.held_out_accuracy:.1%}); distances compare within this protocol only"
        )
    if num_images <= network.num_features:
        more.append(
            f"{num_images} images for {network.num_features} features: singular covariance, strongly biased distance"
        )
    starts = range(first_seed, first_seed + repeats * num_images, num_images)
    return Protocol(
        features=network.name,
        features_sha256=network.sha256,
        num_images=num_images,
        reference=str(record.get("source", "unknown")),
        reference_sha256=str(record.get("source_sha256", "unknown")),
        num_real=reference.statistics.num,
        class_sampling=class_sampling,
        seeds=tuple(f"{start}-{start + num_images - 1}" for start in starts),
        repeats=repeats,
        solver=solver.describe(),
        resize=getattr(network, "resize", "none"),
        device=device,
        notes=(*notes, *more),
    )


def sensitivity(contest: Contest, method: str, state: State) -> dict[str, Any]:
    """How the distance changes around the best setting of a method, one axis at a time (the curves of the paper's Figure 3).

    Returns:
        axes: per axis {"best", "curve": [{"value", "fd", "low", "high"}] as the surrogate expects it with one standard deviation,
        "measured": [{"value", "fd"}] on that line, "near": values whose expected distance is within 5 % of the best};
        edges: axes on which the best setting is at an end of the range.
    """
    policy = contest.policy(method, state)
    best = policy.best(state)
    if best is None:
        return {"axes": {}, "edges": []}
    axes: dict[str, Any] = {}
    measured = policy.measured_at_full_count(state)
    for i, axis in enumerate(policy.grid.axes):
        curve = policy.curve(state, i, best.point)
        if len(curve) < 2:
            continue
        at_best = next(fd for value, fd, _ in curve if value == axis.values[best.point[i]])
        on_line = {
            axis.values[point[i]]: fd
            for point, fd in measured.items()
            if point[:i] == best.point[:i] and point[i + 1 :] == best.point[i + 1 :]
        }
        axes[axis.name] = {
            "best": axis.values[best.point[i]],
            "curve": [
                {"value": value, "fd": fd, "low": fd * float(np.exp(-sd)), "high": fd * float(np.exp(sd))}
                for value, fd, sd in curve
            ],
            "measured": [{"value": value, "fd": fd} for value, fd in on_line.items()],
            "near": [value for value, fd, _ in curve if fd <= NEAR * at_best],
        }
    return {"axes": axes, "edges": list(policy.grid.at_edge(best.point))}


def search_records(contest: Contest, state: State, out: Path) -> list[Mapping[str, Any]]:
    """Every measurement on the board, as results.json keeps them."""
    return [
        {
            **describe_task(contest.task(item.unit), out),
            "setting": item.unit.values,
            "fd": item.value,
            **{k: v for k, v in item.details.items() if k != "fd"},
        }
        for item in state.finished
    ]
