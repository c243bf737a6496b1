"""Several methods on one board: each searched for its own best setting, then compared on the same fresh seeds.

A comparison of methods is fair when each has its own best setting, chosen on other images than those that are
reported. Methods are searched one after the other, because what one finds (the EMA width of the main model, CFG's
weight) is a good start for the next; then all are confirmed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autoguidance.errors import UserError
from autoguidance.tune.board import State, Unit
from autoguidance.tune.grid import Value
from autoguidance.tune.measuring import Task
from autoguidance.tune.policy import Policy, Ranked, SearchPlan
from autoguidance.tune.space import SearchSpace
from autoguidance.zoo import Pair

_BUILDS_ON = {
    "cfg": ("unguided",),
    "cfg+interval": ("unguided", "cfg"),
    "autoguidance": ("unguided",),
    "autoguidance+interval": ("unguided", "autoguidance"),
    "mixed": ("unguided", "cfg", "autoguidance"),
    "truncation": ("unguided",),
}
# With CFG the main model often does best at a much shorter EMA than alone, and then so does it with autoguidance.
_OTHER_WIDTH = {"autoguidance": "cfg", "autoguidance+interval": "cfg"}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A method that takes part.

    Attributes:
        space: what can be chosen.
        plan: what may be spent.
    """

    space: SearchSpace
    plan: SearchPlan


class Contest:
    """What to measure next, over all methods; a `Proposer`.

    Args:
        entries: in the order in which they are searched.
    """

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.entries = tuple(entries)
        names = [entry.space.name for entry in self.entries]
        if len(set(names)) < len(names):
            raise UserError(f"methods {', '.join(names)}: give each a name of its own")
        self._policies: dict[str, Policy] = {}
        self._over: set[str] = set()

    @property
    def methods(self) -> tuple[str, ...]:
        """Their names (labels, where several are of one method), in order."""
        return tuple(entry.space.name for entry in self.entries)

    def _entry(self, method: str) -> Entry:
        return next(entry for entry in self.entries if entry.space.name == method)

    def policy(self, method: str, state: State) -> Policy:
        """The search of one method; made once those that it builds on are done."""
        if method not in self._policies:
            entry = self._entry(method)
            known: dict[str, Value] = {}
            for other in _BUILDS_ON.get(entry.space.method, ()):
                known.update(self._searched(other, method, state))
            other = _OTHER_WIDTH.get(entry.space.method)
            width = self._searched(other, method, state).get("ema_main") if other else None
            self._policies[method] = Policy(
                entry.space.grid,
                entry.space.starts(known, width),
                entry.plan,
                {"method": method},
                self._unguided(entry, state),
            )
        return self._policies[method]

    def _searched(self, other: str, method: str, state: State) -> Mapping[str, Value]:
        """The best setting that the search of another method, before this one, has found; {}: there is none."""
        if other not in self.methods[: self.methods.index(method)]:
            return {}
        ranking = self.policy(other, state).ranking(state)
        return self._entry(other).space.grid.setting(ranking[0].point) if ranking else {}

    def _unguided(self, entry: Entry, state: State) -> list[tuple[Mapping[str, Value], int, float]]:
        """What was measured of the same model without guidance, on the same seeds."""
        space, plan = entry.space, entry.plan
        for other in self.entries[: self.methods.index(space.name)]:
            same = (other.space.main, other.space.solver, other.space.main_degraded)
            if (
                other.space.method == "unguided"
                and same == (space.main, space.solver, space.main_degraded)
                and other.plan.first_seed == plan.first_seed
            ):
                return self.policy(other.space.name, state).measurements(state)
        return []

    def next(self, state: State) -> Unit | None:
        """What to measure now; None: nothing until something under way is finished, or nothing at all any more."""
        unit = self.next_search(state)
        return self.next_confirmation(state) if unit is None and len(self._over) == len(self.entries) else unit

    def next_search(self, state: State) -> Unit | None:
        """What the searches want to measure now; None: nothing until something under way is finished, or they are over."""
        for method in self.methods:
            policy = self.policy(method, state)
            unit = policy.next_search(state)
            if unit is not None:
                return unit
            if policy.searching(state):
                return None
            self._over.add(method)
        return None

    def next_confirmation(self, state: State) -> Unit | None:
        """What is left to confirm, once the searches are over."""
        units = (self.policy(method, state).next_confirmation(state) for method in self.methods)
        return next((unit for unit in units if unit is not None), None)

    def progress(self, state: State) -> tuple[int, int]:
        """(images spent, images to spend) of all searches and confirmations."""
        spent = total = 0
        for entry in self.entries:
            plan = entry.plan
            confirmation = plan.finalists * plan.confirm_repeats * plan.confirm_images
            total += plan.budget + confirmation
            if entry.space.name in self._policies:
                policy = self._policies[entry.space.name]
                spent += plan.budget if entry.space.name in self._over else policy.spent(state)
                spent += sum(len(r.confirmed) * plan.confirm_images for r in policy.ranking(state))
        return min(spent, total), total

    def figures(self, state: State) -> dict[str, float]:
        """What to show beside a progress bar: the smallest distance on the full count, once there is one."""
        values = [item.value for item in state.finished if item.unit.num_images == self._top(item.unit)]
        return {"best": min(values)} if values else {}

    def _top(self, unit: Unit) -> int:
        return self._entry(str(dict(unit.setting)["method"])).plan.counts[-1]

    def best(self, state: State) -> dict[str, tuple[Pair, Ranked]]:
        """Per method its best setting."""
        found = {}
        for entry in self.entries:
            best = self.policy(entry.space.name, state).best(state)
            if best is not None:
                found[entry.space.name] = (entry.space.pair(entry.space.grid.setting(best.point)), best)
        return found

    def pair(self, unit: Unit) -> Pair:
        """What a unit measures."""
        setting = dict(unit.setting)
        return self._entry(str(setting.pop("method"))).space.pair(setting)

    def task(self, unit: Unit) -> Task:
        """The measurement of a unit; the search's are extended from rung to rung."""
        plan = self._entry(str(dict(unit.setting)["method"])).plan
        searching = unit.first_seed == plan.first_seed
        return Task(
            pair=self.pair(unit),
            first_seed=unit.first_seed,
            num_images=unit.num_images,
            extend=len(plan.counts) > 1 and searching,
            metrics=() if searching else plan.confirm_metrics,
        )

    def confirmations(self, method: str, state: State) -> list[Mapping[str, Any]]:
        """Details of the confirmation of a method's best setting, by repeat."""
        policy = self.policy(method, state)
        best = policy.best(state)
        if best is None:
            return []
        details = {item.unit: item.details for item in state.finished}
        return [details[unit] for unit in policy.confirming(best.point) if unit in details]
