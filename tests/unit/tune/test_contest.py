"""What one method's search hands on to the next."""

import math
from typing import Any

from autoguidance.sample import Heun
from autoguidance.tune import Contest, Entry, Finished, GuideSource, Policy, SearchPlan, SearchSpace, State, Unit

STDS = (0.03, 0.05, 0.07, 0.1, 0.15, 0.2)
MAIN = GuideSource("run/main", 8192, STDS)
GUIDES = tuple(GuideSource(run, images, STDS) for run in ("run/main", "run/guide") for images in (512, 1024, 2048))
COUNTS = (256, 768)


def contest(*methods: str, solver: Heun | None = None) -> Contest:
    """Methods in order; the last one sampled by `solver`."""
    plan = SearchPlan(counts=COUNTS, budget=6 * COUNTS[-1], finalists=0)
    unconditional = GuideSource("run/unconditional", 8192, STDS)
    solvers = [*(len(methods) - 1) * [Heun()], solver or Heun()]
    spaces = [
        SearchSpace(
            method,
            MAIN,
            solver,
            GUIDES if method == "autoguidance" else (),
            unconditional if method == "cfg" else None,
        )
        for method, solver in zip(methods, solvers, strict=True)
    ]
    return Contest([Entry(space=space, plan=plan) for space in spaces])


def distance(unit: Unit) -> float:
    """Alone the main model is best at a wide EMA, guided at a narrow one; at w = 1 all are the main model alone."""
    setting: dict[str, Any] = unit.values
    strength = 1 - math.exp(-(setting.get("weight", 1.0) - 1) / 0.3)
    alone = math.log(setting["ema_main"] / 0.2) ** 2
    guided = 0.3 * math.log(setting["ema_main"] / 0.03) ** 2 - 1.5 + 2 * max(0.0, setting.get("weight", 1.0) - 1.6)
    if setting["method"] == "autoguidance":
        guided += 0.3 * math.log(setting["ema_guide"] / 0.1) ** 2 + 0.15 * (setting["guide"] != "guide:512")
    return math.exp(alone + strength * (guided - alone)) * (1 + 30 / unit.num_images)


def searched(made: Contest) -> list[dict[str, Any]]:
    """All measurements of the searches, in order."""
    finished: list[Finished] = []
    while (unit := made.next_search(State(tuple(finished)))) is not None:
        finished.append(Finished(unit, distance(unit), {}, len(finished)))
    return [{**item.unit.values, "num_images": item.unit.num_images, "fd": item.value} for item in finished]


def test_autoguidance_begins_at_the_widths_that_served_the_others() -> None:
    every = searched(contest("unguided", "cfg", "autoguidance"))
    begun = [setting for setting in every if setting["method"] == "autoguidance"][:5]
    best = {}
    for method in ("unguided", "cfg"):
        full = [setting for setting in every if setting["method"] == method and setting["num_images"] == COUNTS[-1]]
        best[method] = min(full, key=lambda setting: setting["fd"])["ema_main"]
    assert best["cfg"] < best["unguided"]
    assert {setting["ema_main"] for setting in begun} == set(best.values())
    without = searched(contest("unguided", "autoguidance"))
    begun = [setting for setting in without if setting["method"] == "autoguidance"][:5]
    assert {setting["ema_main"] for setting in begun} == {0.2}


def policy_and_push(unguided: bool) -> tuple[Policy, SearchSpace]:
    """The search for autoguidance on its own; `unguided`: it knows that no guidance gives 4.0 at every width."""
    space = SearchSpace("autoguidance", MAIN, Heun(), GUIDES)
    plan = SearchPlan(counts=COUNTS[-1:], budget=20 * COUNTS[-1], finalists=0)
    known = [({"ema_main": std}, COUNTS[-1], 4.0) for std in STDS] if unguided else []
    return Policy(space.grid, space.starts({"ema_main": 0.1}), plan, unguided=known), space


def first_proposal(slope: float, unguided: bool) -> float:
    """Push of the first setting that is not a starting point, where log distance goes from log 4 in proportion to the push."""
    policy, space = policy_and_push(unguided)
    finished: list[Finished] = []
    for _ in policy.starts:
        unit = policy.next(State(tuple(finished)))
        assert unit is not None
        finished.append(Finished(unit, 4 * math.exp(slope * _push(unit, space)), {}, len(finished)))
    unit = policy.next(State(tuple(finished)))
    assert unit is not None
    return _push(unit, space)


def _push(unit: Unit, space: SearchSpace) -> float:
    point = space.grid.point(unit.values)
    assert point is not None
    return math.exp(space.grid.log_push[space.grid.index[point]]) - 0.25


def test_a_search_knows_what_no_guidance_gives() -> None:
    # All guidance that was tried harms, the more the worse. Who does not know what none gives goes on towards none.
    assert first_proposal(0.3, unguided=False) < 0.1
    assert first_proposal(0.3, unguided=True) > 0.5
    # With another sampler those measurements say nothing.
    other = contest("unguided", "autoguidance", solver=Heun(num_steps=5))
    searched(other)
    policy = other.policy("autoguidance", State(()))
    assert policy._anchors == []
    assert contest("unguided", "autoguidance").policy("unguided", State(()))._anchors == []


def test_stronger_guidance_is_approached() -> None:
    # All guidance helps, the more the better, up to a push of 1 (w = 2); the grid reaches 3.
    assert 1 < first_proposal(-0.2, unguided=True) < 1.9
