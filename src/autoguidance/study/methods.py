"""Table 1 in miniature: every method of guidance, and what makes a guide, each at its own best setting; with and without labels.

| row | guide |
|---|---|
| unguided | none |
| cfg, cfg+interval | an unconditional network, one size smaller, trained as long |
| autoguidance | one size smaller, T/64 to T/4 of the training |
| same EMA for both | the same guides, at the main model's EMA width |
| reduced training only | the main model's size, another training, T/64 to T/4 |
| reduced capacity only | one size smaller, trained as long |
| early snapshot | the main model's own training at T/64 to T/2 |
| truncation | none: the score times a constant (negative control) |
| mixed | CFG and autoguidance together, shared out by alpha |

Training rates do not depend on a run's length, so a snapshot at T/16 is what a training of T/16 ends with.

Reference: Karras et al. 2024, arXiv 2406.02507, Table 1 and Section 5.
"""

from typing import Any

from autoguidance.study.experiment import Experiment
from autoguidance.tune import SearchSpace, early_snapshots

_EARLIEST, _LATEST = 1 / 64, 1 / 4


def methods(experiment: Experiment) -> dict[str, Any]:
    """Train, compare, write; returns the content of results.json."""
    size, smaller = experiment.preset, experiment.guide_preset
    runs = {
        "main": experiment.training(size, 1, 0),
        "guide": experiment.training(smaller, 1, 1),
        "retrained": experiment.training(size, _LATEST, 3),
    }
    if experiment.labelled:
        runs["unconditional"] = experiment.training(smaller, 1, 2, unconditional=True)
    experiment.train(runs)
    main, whole = experiment.guide("main"), experiment.guide("guide")
    solver, out = experiment.solver, experiment.out
    small = tuple(early_snapshots(str(out / "guide"), _EARLIEST, _LATEST))
    again = tuple(early_snapshots(str(out / "retrained"), _EARLIEST / _LATEST, 1))
    own = tuple(early_snapshots(str(out / "main"), _EARLIEST, 1 / 2))
    spaces = [SearchSpace("unguided", main, solver)]
    unconditional = experiment.guide("unconditional") if experiment.labelled else None
    if unconditional is not None:
        spaces += [SearchSpace(kind, main, solver, (), unconditional) for kind in ("cfg", "cfg+interval")]
    spaces += [
        SearchSpace("autoguidance", main, solver, small),
        SearchSpace("autoguidance", main, solver, small, label="same EMA for both", same_ema=True),
        SearchSpace("autoguidance", main, solver, again, label="reduced training only"),
        SearchSpace("autoguidance", main, solver, (whole,), label="reduced capacity only"),
        SearchSpace("autoguidance", main, solver, own, label="early snapshot"),
        SearchSpace("truncation", main, solver),
    ]
    if unconditional is not None:
        spaces.append(SearchSpace("mixed", main, solver, small, unconditional))
    return experiment.finish(experiment.compare(spaces))


def domain(experiment: Experiment) -> dict[str, Any]:
    """The four rows that `autoguidance run` compares, for one data set; guides small and short, or early snapshots."""
    runs = {
        "main": experiment.training(experiment.preset, 1, 0),
        "guide": experiment.training(experiment.guide_preset, _LATEST, 1),
    }
    if experiment.labelled:
        runs["unconditional"] = experiment.training(experiment.guide_preset, 1, 2, unconditional=True)
    experiment.train(runs)
    main, solver, out = experiment.guide("main"), experiment.solver, experiment.out
    guides = (
        *early_snapshots(str(out / "guide"), _EARLIEST / _LATEST, 1),
        *early_snapshots(str(out / "main"), _EARLIEST, 1 / 2),
    )
    spaces = [SearchSpace("unguided", main, solver)]
    if experiment.labelled:
        unconditional = experiment.guide("unconditional")
        spaces += [SearchSpace(kind, main, solver, (), unconditional) for kind in ("cfg", "cfg+interval")]
    spaces.append(SearchSpace("autoguidance", main, solver, guides))
    return experiment.finish(experiment.compare(spaces))
