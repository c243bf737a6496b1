"""Which setting to measure next, and on how many images: a search that spends images where they decide something.

Problem: the distance of one setting costs 50,000 images, and the authors of autoguidance measured some 30,000 of them
to map w, two EMA widths and the guide by hand-made grids. Most settings are seen to be bad on a fraction of that.

    rungs         n_0 < n_1 < ... < n_R images, all the same seeds: within a rung the bias of the distance is the same
                  and most of the noise is too, so settings are compared within a rung only; what rung r has sampled is
                  part of rung r + 1
    new settings  on n_0 images: first the starting points, then where the expected improvement under a Gaussian
                  process of all measurements so far (`Surrogate`) is largest:  EI = E max(0, best - f(x))
    promotions    a rung may hold one setting for every `keep` of the rung below (successive halving, asynchronous: as
                  soon as there are enough, the best one not yet there goes up)
    the end       the last part of the budget measures the best settings by the surrogate at the full count
    confirmation  the finalists at full count on fresh seeds, several times; the smallest mean is the result

The policy is a function of what is finished and what is under way, nothing else: any worker can ask at any time, and a
search that was killed goes on where it was.

References: Jones, Schonlau and Welch 1998 (expected improvement); Li et al. 2020, arXiv 1810.05934 (asynchronous
successive halving); Karras et al. 2024, arXiv 2406.02507, Appendix B.1 (the search by hand).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autoguidance.errors import UserError
from autoguidance.tune.board import State, Unit
from autoguidance.tune.grid import Grid, Places, Point, Value, subset
from autoguidance.tune.surrogate import Surrogate

_MOST_CANDIDATES = 40_000
_MOST_STRONGER = 0.5  # of the logarithm of a guide's push: from w = 2 to 2.8
_MOST_FAILURES = 2
_MOST_VANISHED = 5
FEWEST_IMAGES = 128
"""Fewest images of any measurement."""
IMAGES_PER_FEATURE = 4
"""Fewest of a measurement that is to rank settings."""


def rung_counts(num_images: int, num_features: int) -> tuple[int, ...]:
    """Images of the rungs: a ninth, a third and all, in whole micro-batches of 64, as far as there are four images per feature.

    With fewer the distance is mostly bias, and the bias depends on the setting: on digits (64 features) 128 images put a setting
    among the worst of its rung that was the best on 256 and on 768 (docs/log.md).
    """
    least = max(FEWEST_IMAGES, IMAGES_PER_FEATURE * num_features)
    lower = [-(-num_images // (64 * share)) * 64 for share in (9, 3)]
    return (*(count for count in dict.fromkeys(lower) if least <= count < num_images), num_images)


@dataclass(frozen=True, kw_only=True)
class SearchPlan:
    """How much to spend on what.

    Attributes:
        counts: images per rung, ascending; one rung is fine.
        budget: images of the search; confirmation not included.
        keep: one setting in `keep` goes up a rung.
        final_share: of the budget, kept for the end.
        first_seed: of the search's images.
        finalists, confirm_repeats, confirm_images, confirm_seed: confirmation: how many settings, how many disjoint sets of how
            many images, from which seed on. No finalists: no confirmation.
        confirm_metrics: measured there beside the Fréchet distance, see `Task.metrics`.
        random_seed: of the candidates drawn from a very large grid.

    Raises: UserError for counts that do not ascend, or a budget below one measurement at the full count.
    """

    counts: tuple[int, ...]
    budget: int
    keep: float = 3.0
    final_share: float = 0.25
    first_seed: int = 5_000_000
    finalists: int = 3
    confirm_repeats: int = 3
    confirm_images: int = 0
    confirm_seed: int = 0
    confirm_metrics: tuple[str, ...] = ()
    random_seed: int = 0

    def __post_init__(self) -> None:
        if not self.counts or self.counts[0] < 2 or list(self.counts) != sorted(set(self.counts)):
            raise UserError(f"numbers of images {self.counts}: give ascending numbers of at least 2")
        if self.budget < self.counts[-1]:
            raise UserError(
                f"a budget of {self.budget} images is less than one measurement on {self.counts[-1]}; give a larger one"
            )
        if not 1 < self.keep < math.inf or not 0 <= self.final_share < 1:
            raise UserError(f"keep {self.keep}, final share {self.final_share}: give more than 1, and 0 to below 1")
        if self.finalists and (self.confirm_repeats < 1 or self.confirm_images < 2):
            raise UserError("confirmation needs at least 1 repeat of 2 images")

    def cost(self, rung: int) -> int:
        """Images that a setting takes on this rung beyond those of the rung below."""
        return self.counts[rung] - (self.counts[rung - 1] if rung else 0)


@dataclass(frozen=True)
class Ranked:
    """A setting and what is known of it.

    Attributes:
        point: where it is on the grid.
        distance: expected distance at the full count on the search's seeds, by the surrogate.
        measured: the distance measured there; None: only on fewer images.
        confirmed: distances of the confirmation, on fresh seeds.
    """

    point: Point
    distance: float
    measured: float | None
    confirmed: tuple[float, ...] = ()

    @property
    def mean(self) -> float:
        """Of the confirmation; infinity without."""
        return sum(self.confirmed) / len(self.confirmed) if self.confirmed else math.inf


class Policy:
    """The search for one method on one grid.

    Args:
        grid: settings to choose from.
        starts: points to begin with, most promising first.
        plan: what to spend.
        tag: entries that every setting carries, so that several methods share one board.
        unguided: what is known of the unguided model, where all settings lead as guidance fades: (setting, number of images, distance)
            on the same seeds.
    """

    def __init__(
        self,
        grid: Grid,
        starts: Sequence[Point],
        plan: SearchPlan,
        tag: Mapping[str, float | str] | None = None,
        unguided: Sequence[tuple[Mapping[str, Value], int, float]] = (),
    ) -> None:
        self.grid, self.plan = grid, plan
        self.tag = dict(tag or {})
        anchors = [(grid.without_guidance(s), n, v) for s, n, v in unguided if n in plan.counts and math.isfinite(v)]
        self._anchors = [(x, plan.counts.index(n), v) for x, n, v in anchors if x is not None]
        self.starts = tuple(dict.fromkeys(starts))
        self._fitted: tuple[tuple, Surrogate] | None = None

    @property
    def _anchored(self) -> Places:
        none = np.zeros(len(self._anchors))
        return Places(np.stack([x for x, _, _ in self._anchors]), none.astype(np.int64), none)

    # Units and points

    def unit(self, point: Point, first_seed: int, num_images: int) -> Unit:
        """The measurement of a point."""
        setting = {**self.grid.setting(point), **self.tag}
        return Unit(setting=tuple(sorted(setting.items())), first_seed=first_seed, num_images=num_images)

    def _place(self, unit: Unit) -> tuple[Point, int] | None:
        """(point, rung) of a unit of the search; None: it belongs to the confirmation or to another search."""
        setting = dict(unit.setting)
        if any(setting.pop(name, None) != value for name, value in self.tag.items()):
            return None
        point = self.grid.point(setting)
        if point is None or unit.first_seed != self.plan.first_seed or unit.num_images not in self.plan.counts:
            return None
        return point, self.plan.counts.index(unit.num_images)

    def _measured(self, state: State) -> dict[tuple[Point, int], float]:
        found = {}
        for item in state.finished:
            place = self._place(item.unit)
            if place is not None:
                found[place] = item.value
        for unit in _hopeless(state):
            place = self._place(unit)
            if place is not None and place not in found:
                found[place] = math.inf
        return found

    def _pending(self, state: State) -> list[tuple[Point, int]]:
        return [place for unit in state.pending if (place := self._place(unit)) is not None]

    def spent(self, state: State) -> int:
        """Images of the search that are sampled or under way."""
        return sum(self.plan.cost(rung) for _, rung in {*self._measured(state), *self._pending(state)})

    # The search

    def next(self, state: State) -> Unit | None:
        """What to measure now; None: nothing until something under way is finished, or nothing at all any more."""
        unit = self.next_search(state)
        if unit is None and not self.searching(state):
            unit = self.next_confirmation(state)
        return unit

    def next_search(self, state: State) -> Unit | None:
        """What the search wants to measure now; None: nothing until something under way is finished, or its budget is spent."""
        place = self._next_place(state)
        return None if place is None else self.unit(place[0], self.plan.first_seed, self.plan.counts[place[1]])

    def searching(self, state: State) -> bool:
        """Whether measurements of the search are under way."""
        return bool(self._pending(state))

    def next_confirmation(self, state: State) -> Unit | None:
        """What is left of the confirmation, once the search is over."""
        if not self.plan.finalists:
            return None
        known = {item.unit for item in state.finished} | set(state.pending) | _hopeless(state)
        finalists = [self.confirming(ranked.point) for ranked in self.ranking(state)[: self.plan.finalists]]
        for repeat in range(self.plan.confirm_repeats):
            for units in finalists:
                if units[repeat] not in known:
                    return units[repeat]
        return None

    def confirming(self, point: Point) -> list[Unit]:
        """The measurements that confirm a setting, by repeat."""
        plan = self.plan
        starts = (plan.confirm_seed + repeat * plan.confirm_images for repeat in range(plan.confirm_repeats))
        return [self.unit(point, first, plan.confirm_images) for first in starts]

    def _next_place(self, state: State) -> tuple[Point, int] | None:
        measured, pending = self._measured(state), self._pending(state)
        taken = {*measured, *pending}
        left = self.plan.budget - sum(self.plan.cost(rung) for _, rung in taken)
        top = len(self.plan.counts) - 1
        for point in self.starts:
            if (point, 0) not in taken and self.plan.cost(0) <= left:
                return point, 0
        if top and left > self.plan.final_share * self.plan.budget:
            for rung in reversed(range(top)):
                below = sorted((value, point) for (point, r), value in measured.items() if r == rung)
                above = {point for point, r in taken if r == rung + 1}
                if len(above) < int(len(below) / self.plan.keep):
                    best = [p for value, p in below if p not in above and math.isfinite(value)]
                    if best and self.plan.cost(rung + 1) <= left:
                        return best[0], rung + 1
        exploring = not top or left > self.plan.final_share * self.plan.budget
        if exploring and self.plan.cost(0) <= left:
            point = self._improving(measured, pending)
            if point is not None:
                return point, 0
        return self._best_upwards(measured, taken, left) if top else None

    def _best_upwards(
        self, measured: Mapping[tuple[Point, int], float], taken: set[tuple[Point, int]], left: int
    ) -> tuple[Point, int] | None:
        """At the end: the best setting by the surrogate that the full count has not seen, one rung up at a time."""
        top = len(self.plan.counts) - 1
        for ranked in self._ranked(measured):
            rung = next((r for r in reversed(range(top + 1)) if (ranked.point, r) in taken), -1)
            if rung == top or (rung >= 0 and (ranked.point, rung) not in measured):
                continue  # there already, or on its way
            if sum(self.plan.cost(r) for r in range(rung + 1, top + 1)) <= left:
                return ranked.point, rung + 1
        return None

    # What the surrogate says

    def _surrogate(self, measured: Mapping[tuple[Point, int], float]) -> Surrogate | None:
        # A setting that cannot be measured at all (NaN) is as bad as the worst that was.
        finite = [value for value in measured.values() if math.isfinite(value)]
        if len(finite) < 2:
            return None
        rows = sorted((point, rung, min(value, 2 * max(finite))) for (point, rung), value in measured.items())
        key = tuple(rows)
        if self._fitted is None or self._fitted[0] != key:
            places = self.grid.places([point for point, _, _ in rows])
            if self._anchors:
                places = Places(*(np.concatenate(pair) for pair in zip(places, self._anchored, strict=True)))
            found = [*((rung, value) for _, rung, value in rows), *((rung, value) for _, rung, value in self._anchors)]
            surrogate = Surrogate(
                places,
                np.array([rung for rung, _ in found]),
                np.array([value for _, value in found]),
                self.plan.counts,
            )
            self._fitted = (key, surrogate)
        return self._fitted[1]

    def _improving(
        self, measured: Mapping[tuple[Point, int], float], pending: Sequence[tuple[Point, int]]
    ) -> Point | None:
        """The setting not yet looked at whose expected improvement is largest."""
        seen = {point for point, _ in measured} | {point for point, _ in pending}
        free = subset(
            [i for i, point in enumerate(self.grid.points) if point not in seen],
            _MOST_CANDIDATES,
            self.plan.random_seed,
        )
        if not len(free):
            return None
        if seen:  # stronger guidance is approached: far beyond all that was seen it is nearly always ruinous
            reach = self.grid.log_push[[self.grid.index[point] for point in seen]].max() + _MOST_STRONGER
            near = free[self.grid.log_push[free] <= reach]
            free = near if len(near) else free
        surrogate = self._surrogate(measured)
        if surrogate is None:  # nothing to learn from yet: as far from what is seen as can be
            known = self.grid.coordinates[[self.grid.index[point] for point in seen]] if seen else np.zeros((0, 1))
            if not len(known):
                return self.grid.points[free[len(free) // 2]]
            gaps = np.abs(self.grid.coordinates[free][:, None] - known[None]).sum(-1).min(1)
            return self.grid.points[free[int(gaps.argmax())]]
        surrogate = surrogate.expecting(
            self.grid.places([point for point, _ in pending]), np.array([rung for _, rung in pending], int)
        )
        best = surrogate.predict(self.grid.places(list({point for point, _ in measured})))[0].min()
        if self._anchors:  # guidance that is no better than none is no improvement
            best = min(best, surrogate.predict(self._anchored)[0].min())
        mean, deviation = surrogate.predict(self.grid.places_at(free))
        return self.grid.points[free[int(_expected_improvement(best - mean, deviation).argmax())]]

    def _ranked(self, measured: Mapping[tuple[Point, int], float]) -> list[Ranked]:
        """Every measured setting, best first by the surrogate, which takes out some of the noise of single measurements."""
        top = len(self.plan.counts) - 1
        points = sorted({point for (point, _), value in measured.items() if math.isfinite(value)})
        surrogate = self._surrogate(measured)
        if surrogate is None:
            values = [min(value for (p, _), value in measured.items() if p == point) for point in points]
        else:
            mean, _ = surrogate.predict(self.grid.places(points))
            values = np.exp(mean).tolist()
        found = [Ranked(point, value, measured.get((point, top))) for point, value in zip(points, values, strict=True)]
        return sorted(found, key=lambda ranked: (ranked.distance, ranked.point))

    def ranking(self, state: State) -> list[Ranked]:
        """Settings that were measured at the full count (else all), best first; confirmed ones first, by the mean of their
        confirmation."""
        measured = self._measured(state)
        found = self._ranked(measured)
        found = [ranked for ranked in found if ranked.measured is not None] or found
        values = {item.unit: item.value for item in state.finished}
        confirmed = []
        for ranked in found:
            units = self.confirming(ranked.point) if self.plan.finalists else []
            distances = tuple(values[unit] for unit in units if unit in values)
            confirmed.append(Ranked(ranked.point, ranked.distance, ranked.measured, distances))
        return confirmed

    def best(self, state: State) -> Ranked | None:
        """The result: the smallest mean among settings with a complete confirmation, else the best by the surrogate."""
        ranking = self.ranking(state)
        whole = [ranked for ranked in ranking if len(ranked.confirmed) == self.plan.confirm_repeats]
        if self.plan.finalists and whole:
            return min(whole, key=lambda ranked: ranked.mean)
        return ranking[0] if ranking else None

    def measurements(self, state: State) -> list[tuple[Mapping[str, Value], int, float]]:
        """(setting, number of images, distance) of all that the search has measured."""
        measured = sorted(self._measured(state).items())
        return [(self.grid.setting(p), self.plan.counts[rung], v) for (p, rung), v in measured if math.isfinite(v)]

    def measured_at_full_count(self, state: State) -> dict[Point, float]:
        """Distances of the search on all of its images."""
        top = len(self.plan.counts) - 1
        return {p: v for (p, rung), v in self._measured(state).items() if rung == top and math.isfinite(v)}

    def curve(self, state: State, axis: int, point: Point) -> list[tuple[float | str, float, float]]:
        """(value, expected distance, standard deviation of its logarithm) along one axis through a point: how sensitive it is."""
        surrogate = self._surrogate(self._measured(state))
        if surrogate is None:
            return []
        line = [(*point[:axis], i, *point[axis + 1 :]) for i in range(len(self.grid.axes[axis].values))]
        line = [p for p in line if p in self.grid.index]
        mean, deviation = surrogate.predict(self.grid.places(line))
        values = [self.grid.axes[axis].values[p[axis]] for p in line]
        return list(zip(values, np.exp(mean).tolist(), deviation.tolist(), strict=True))


def _hopeless(state: State) -> set[Unit]:
    """Units that are not tried again: their measurement failed, or everyone who tried vanished (out of memory, perhaps)."""
    failed = {unit for unit, times in state.failed.items() if times >= _MOST_FAILURES}
    return failed | {unit for unit, times in state.expired.items() if times >= _MOST_VANISHED}


def _expected_improvement(gain: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """E max(0, gain + deviation Z), Z standard normal."""
    z = gain / deviation
    # math.erf has no vector form in numpy; torch's is in the surrogate's float64 as well.
    cdf = 0.5 * (1 + np.vectorize(math.erf, otypes=[np.float64])(z / math.sqrt(2)))
    pdf = np.exp(-np.square(z) / 2) / math.sqrt(2 * math.pi)
    return gain * cdf + deviation * pdf
