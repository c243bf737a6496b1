"""CFG and autoguidance together: the distance over total strength w and share alpha (Eq. 6), at equal seeds.

    D_main + (w_cfg - 1)(D_main - D_unconditional) + (w_auto - 1)(D_main - D_guide)
    w_cfg = (1 - alpha)(w - 1) + 1,   w_auto = alpha (w - 1) + 1

The best mixture is searched first, as in `methods`. Its EMA widths and its guide are then kept for the whole grid, so that w and alpha
are all that differs between its cells: the columns alpha = 0 and 1 are CFG and autoguidance with these networks, not each at its best.

Reference: Karras et al. 2024, arXiv 2406.02507, Eq. 6.
"""

from dataclasses import replace
from typing import Any

from autoguidance.errors import UserError
from autoguidance.study.experiment import Experiment
from autoguidance.tune import GuideSource, SearchSpace, early_snapshots
from autoguidance.zoo import parse_model_name

WEIGHTS = (1.25, 1.5, 2.0, 2.5, 3.0)
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
_EARLIEST, _LATEST = 1 / 64, 1 / 4


def mixing(experiment: Experiment) -> dict[str, Any]:
    """Train, compare, write; returns the content of results.json, with `mixing`: weight and alpha of each row of the grid.

    Raises: UserError for data without classes, where there is no CFG to mix.
    """
    if not experiment.labelled:
        raise UserError(f"{experiment.config.data} has no classes, so there is no CFG to mix; give labelled images")
    experiment.train(
        {
            "main": experiment.training(experiment.preset, 1, 0),
            "guide": experiment.training(experiment.guide_preset, _LATEST, 1),
            "unconditional": experiment.training(experiment.guide_preset, 1, 2, unconditional=True),
        }
    )
    main, unconditional = experiment.guide("main"), experiment.guide("unconditional")
    guides = tuple(early_snapshots(str(experiment.out / "guide"), _EARLIEST / _LATEST, 1))
    searched = [
        SearchSpace("unguided", main, experiment.solver),
        SearchSpace("mixed", main, experiment.solver, guides, unconditional),
    ]
    best = experiment.compare(searched).best["mixed"]
    assert best.guide is not None  # the search's alphas lie between CFG and autoguidance
    assert best.unconditional is not None
    cells = {f"w = {weight:g}, alpha = {alpha:g}": (weight, alpha) for weight in WEIGHTS for alpha in SHARES}
    grid = SearchSpace(
        "mixed",
        _only(best.main, main),
        experiment.solver,
        (_only(best.guide, *guides),),
        _only(best.unconditional, unconditional),
    )
    spaces = [
        replace(grid, weights=(weight,), alphas=(alpha,), label=label) for label, (weight, alpha) in cells.items()
    ]
    found = experiment.compare([*searched, *spaces])
    records = [{"method": label, "weight": weight, "alpha": alpha} for label, (weight, alpha) in cells.items()]
    return experiment.finish(found, mixing=records)


def _only(model: str, *sources: GuideSource) -> GuideSource:
    """The source that a chosen model comes from, with the model's EMA width alone."""
    name = parse_model_name(model)
    source = next(s for s in sources if s.run == str(name.path) and name.num_images in (None, s.num_images))
    return replace(source, stds=(min(source.stds, key=lambda std: abs(std - (name.ema_std or std))),))
