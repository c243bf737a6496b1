"""Must the guide make the same kinds of errors? One trained model, made worse on purpose, as main model and as guide.

The same network is both, so that nothing but the damage tells them apart. Damage is dropout (5 % weak, 10 % strong) or input noise (10 %
weak, 20 % strong), see `guidance.degraded`:

    matched      main weakly damaged, guide strongly and in the same way: guidance should undo the damage
    mismatched   the guide damaged in the other way: guidance should not help (best w near 1)
    intact main  the guide a damaged copy of an intact main model: no help

The main model's EMA width is the intact model's best everywhere, so w is all that is searched. One network plays both parts, so the
evaluations of both are counted as the main model's.

Reference: Karras et al. 2024, arXiv 2406.02507, Section 4.
"""

from dataclasses import replace
from typing import Any

from autoguidance.guidance import Degradation
from autoguidance.study.experiment import Experiment
from autoguidance.tune import SearchSpace
from autoguidance.zoo import parse_model_name

_DAMAGE = {
    "dropout": (Degradation("dropout", 0.05), Degradation("dropout", 0.10)),
    "noise": (Degradation("noise", 0.10), Degradation("noise", 0.20)),
}
_WEIGHTS = (1.1, 1.25, 1.5, 1.75, 2.0, 2.25, 2.5, 3.0)


def degradations(experiment: Experiment) -> dict[str, Any]:
    """Train, compare, write; returns the content of results.json, with `degradations`: what each row is and what it recovers."""
    experiment.train({"main": experiment.training(experiment.preset, 1, 0)})
    main, solver = experiment.guide("main"), experiment.solver
    intact = SearchSpace("unguided", main, solver)
    chosen = parse_model_name(experiment.compare([intact]).best["unguided"].main).ema_std
    assert chosen is not None  # a run's model has a width
    main = replace(main, stds=(min(main.stds, key=lambda std: abs(std - chosen)),))

    def unguided(damage: Degradation) -> SearchSpace:
        return SearchSpace("unguided", main, solver, label=f"main with {damage}", main_degraded=damage)

    def guided(damage: Degradation | None, guide: Degradation) -> SearchSpace:
        label = f"{f'main with {damage}' if damage else 'intact main'}, guide with {guide}"
        return SearchSpace(
            "autoguidance",
            main,
            solver,
            (main,),
            weights=_WEIGHTS,
            label=label,
            main_degraded=damage,
            guide_degraded=guide,
        )

    kinds = {"intact": [intact], "damaged": [], "matched": [], "mismatched": [], "intact main": []}
    for kind, (weak, strong) in _DAMAGE.items():
        kinds["damaged"] += [unguided(weak), unguided(strong)]
        kinds["matched"].append(guided(weak, strong))
        kinds["mismatched"] += [guided(weak, other) for name, (_, other) in _DAMAGE.items() if name != kind]
        kinds["intact main"].append(guided(None, strong))
    found = experiment.compare([space for spaces in kinds.values() for space in spaces])
    distances = {row["method"]: row["fd"] for row in found.rows(experiment.out)}
    records = []
    for kind, spaces in kinds.items():
        for space in spaces:
            without = "unguided" if space.main_degraded is None else f"main with {space.main_degraded}"
            # 1: as good as the intact model; 0: no better than without guidance
            lost = distances[without] - distances["unguided"]
            recovered = (distances[without] - distances[space.name]) / lost if lost > 0 else None
            records.append({"method": space.name, "kind": kind, "without_guidance": without, "recovered": recovered})
    return experiment.finish(found, degradations=records)
