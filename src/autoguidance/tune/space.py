"""What can be chosen, per method, as ordered axes; and the pair that a point on them stands for.

| method | axes |
|---|---|
| unguided | EMA_main |
| cfg | w, EMA_main, EMA_unconditional |
| cfg+interval | w, sigma_hi, sigma_lo, EMA_main, EMA_unconditional |
| autoguidance | w, guide, EMA_guide, EMA_main |

The guide is the separately trained one, or an early snapshot of the main run itself: sorted from the worst to the
best, so that "how bad" is one ordered axis. A width that the stored snapshots cannot represent is left out.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from autoguidance.ema import MAX_PROFILE_ERROR, reconstruction_error
from autoguidance.errors import UserError
from autoguidance.sample import Solver
from autoguidance.tune.search import Point
from autoguidance.zoo import Pair, list_snapshots

WEIGHTS = (1.05, 1.1, 1.15, 1.2, 1.25, 1.3, 1.4, 1.5, 1.6, 1.7, 1.85, 2.0, 2.25, 2.5, 2.75, 3.0, 3.5, 4.0)
EMA_STDS = (0.02, 0.03, 0.04, 0.05, 0.07, 0.085, 0.1, 0.125, 0.15, 0.2, 0.25)
SIGMA_HIGH = (0.5, 0.8, 1.2, 1.8, 2.7, 4.0, 6.0, 9.0, 80.0)
SIGMA_LOW = (0.0, 0.05, 0.1, 0.17, 0.28, 0.45)


@dataclass(frozen=True)
class GuideSource:
    """A run, at a stored number of images, that can serve as a guide, with the widths that can be had there."""

    run: str
    num_images: int
    stds: tuple[float, ...]

    def name(self, ema_std: float) -> str:
        """The model's name at the representable width nearest to ema_std."""
        nearest = min(self.stds, key=lambda std: abs(std - ema_std))
        return f"{self.run}@{nearest:.3f}:{self.num_images}"


def guide_source(run: str, num_images: int | None = None) -> GuideSource:
    """A run at a stored time (None: the last) with the EMA widths that its snapshots can represent there."""
    snapshots = list_snapshots(run)
    end = snapshots[-1].num_images if num_images is None else num_images
    stored = [(s.num_images, s.ema_std) for s in snapshots if s.num_images <= end]
    if not any(time == end for time, _ in stored):
        raise UserError(f"{run} has no snapshot at {end} images")
    stds = tuple(std for std in EMA_STDS if reconstruction_error(stored, (end, std)) <= MAX_PROFILE_ERROR)
    return GuideSource(run, end, stds or tuple(sorted({std for time, std in stored if time == end})))


def early_snapshots(run: str, lowest: float = 1 / 32, highest: float = 0.5) -> list[GuideSource]:
    """A run's stored times from `lowest` to `highest` of its length, about two per doubling, as guides of the run itself."""
    times = sorted({snapshot.num_images for snapshot in list_snapshots(run)})
    end, chosen = times[-1], []
    for time in times:
        if lowest * end <= time <= highest * end and (not chosen or time >= 1.2 * chosen[-1]):
            chosen.append(time)
    return [guide_source(run, time) for time in chosen]


@dataclass(frozen=True)
class SearchSpace:
    """The axes of one method.

    Attributes:
        method: "unguided" | "cfg" | "cfg+interval" | "autoguidance".
        main: the main run.
        solver: used for every measurement.
        guides: autoguidance only: from the worst to the best.
        unconditional: CFG only.
    """

    method: str
    main: GuideSource
    solver: Solver
    guides: tuple[GuideSource, ...] = ()
    unconditional: GuideSource | None = None

    @property
    def axes(self) -> tuple[tuple[str, tuple[float, ...]], ...]:
        """Names and values; the guide's values are indices into `guides`."""
        main = ("ema_main", self.main.stds)
        if self.method == "unguided":
            return (main,)
        if self.method == "autoguidance":
            return (
                ("weight", WEIGHTS),
                ("guide", tuple(map(float, range(len(self.guides))))),
                ("ema_guide", EMA_STDS),
                main,
            )
        assert self.unconditional is not None
        last = (main, ("ema_unconditional", self.unconditional.stds))
        if self.method == "cfg":
            return (("weight", WEIGHTS), *last)
        return (("weight", WEIGHTS), ("sigma_hi", SIGMA_HIGH), ("sigma_lo", SIGMA_LOW), *last)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of values per axis."""
        return tuple(len(values) for _, values in self.axes)

    def point(self, **values: float) -> Point:
        """The grid point nearest to the given values; axes that are not named take the middle of their range."""
        return tuple(
            min(range(len(axis)), key=lambda i: abs(axis[i] - values[name])) if name in values else len(axis) // 2
            for name, axis in self.axes
        )

    def values(self, point: Point) -> dict[str, float]:
        """The values at a grid point, by axis."""
        return {name: axis[index] for (name, axis), index in zip(self.axes, point, strict=True)}

    def pair(self, point: Point) -> Pair:
        """The pair that a grid point stands for."""
        values = self.values(point)
        main = self.main.name(values["ema_main"])
        if self.method == "unguided":
            return Pair(main=main, solver=self.solver)
        if self.method == "autoguidance":
            guide = self.guides[int(values["guide"])].name(values["ema_guide"])
            return Pair(main=main, guide=guide, weight=values["weight"], solver=self.solver)
        assert self.unconditional is not None
        return Pair(
            main=main,
            unconditional=self.unconditional.name(values["ema_unconditional"]),
            cfg_weight=values["weight"],
            interval=(values["sigma_lo"], values["sigma_hi"]) if "sigma_hi" in values else None,
            solver=self.solver,
        )

    def starts(self, best: dict[str, float], thorough: bool) -> Sequence[Point]:
        """Points to begin with: around what is known from the literature and from methods searched before.

        Args:
            best: values of the best point of a simpler method (`ema_main` of unguided; all of `cfg` for `cfg+interval`).
            thorough: more of them.
        """
        if self.method == "unguided":
            return [self.point(ema_main=std) for std in (0.05, 0.1)]
        weights = (1.15, 1.4, 1.85) if thorough else (1.2, 1.6)
        if self.method == "cfg":
            return [self.point(**{"ema_unconditional": 0.07, **best, "weight": w}) for w in weights]
        if self.method == "cfg+interval":
            w = best.get("weight", 1.3)
            return [
                self.point(**{**best, "weight": w * factor, "sigma_hi": high, "sigma_lo": low})
                for factor, high, low in ((1.0, 2.7, 0.1), (1.25, 1.8, 0.17), (1.25, 4.0, 0.1), (1.0, 80.0, 0.17))
            ]

        # Snapshots of the main run at a sixth, a twelfth and a third of it, with a wide average (docs/log.md: 0.15 and more
        # was best on digits), and the trained guide, whose age is fixed, with a medium one and also at the paper's w.
        def own(share: float, w: float) -> Point:
            return self.point(**{"ema_guide": 0.2, **best, "guide": self._nearest_guide(share), "weight": w})

        def trained(w: float) -> list[Point]:
            places = [i for i, guide in enumerate(self.guides) if guide.run != self.main.run][:1]
            return [self.point(**{"ema_guide": 0.1, **best, "guide": place, "weight": w}) for place in places]

        starts = [own(1 / 6, 1.3), *trained(1.2), own(1 / 6, 1.5), own(1 / 12, 1.2)]
        if thorough:
            starts += [*trained(2.0), own(1 / 3, 1.7)]
        return list(dict.fromkeys(starts))

    def steps(self, budget: int) -> tuple[int, ...] | None:
        """First steps of the search; None: its own. The starts of autoguidance lie all over the range already, so a small budget is
        better spent close to the best of them."""
        return (1,) * len(self.axes) if self.method == "autoguidance" and budget < 30 else None

    @property
    def diagonals(self) -> tuple[tuple[int, int], ...]:
        """Axes that belong together: the better the guide, the larger w must be for the same effect."""
        return ((0, 1),) if self.method == "autoguidance" else ()

    def _nearest_guide(self, share: float) -> int:
        own = [i for i, guide in enumerate(self.guides) if guide.run == self.main.run] or list(range(len(self.guides)))
        return min(own, key=lambda i: abs(math.log(self.guides[i].num_images / (share * self.main.num_images))))
