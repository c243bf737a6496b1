"""What can be chosen, per method, as a grid; and the pair that a point on it stands for.

| method | axes |
|---|---|
| unguided | EMA_main |
| cfg | w, EMA_main, EMA_unconditional |
| cfg+interval | w, sigma_hi, sigma_lo, EMA_main, EMA_unconditional |
| autoguidance | w, guide, EMA_guide, EMA_main |
| autoguidance+interval | w, sigma_hi, sigma_lo, guide, EMA_guide, EMA_main |
| mixed | w, alpha, guide, EMA_guide, EMA_main, EMA_unconditional (Eq. 6: total strength w, shared out by alpha from CFG to autoguidance) |
| truncation | factor, EMA_main (the paper's negative control) |

A guide is a training run at one of its stored times: a run of its own, or an early snapshot of the main run, which costs
no second training. Widths that the stored snapshots cannot represent are left out.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from autoguidance.ema import MAX_PROFILE_ERROR, reconstruction_errors
from autoguidance.errors import UserError
from autoguidance.guidance import Degradation, mixing_weights
from autoguidance.models import read_model_info
from autoguidance.sample import Solver
from autoguidance.tune.grid import Axis, Grid, Point, Value
from autoguidance.zoo import Pair, is_remote, list_snapshots, parse_model_name

WEIGHTS = (1.05, 1.1, 1.15, 1.2, 1.25, 1.3, 1.4, 1.5, 1.6, 1.7, 1.85, 2.0, 2.25, 2.5, 2.75, 3.0, 3.5, 4.0)
EMA_STDS = (0.02, 0.03, 0.04, 0.05, 0.07, 0.085, 0.1, 0.125, 0.15, 0.2, 0.25)
SIGMA_HIGH = (0.5, 0.8, 1.2, 1.8, 2.7, 4.0, 6.0, 9.0, 80.0)
SIGMA_LOW = (0.0, 0.05, 0.1, 0.17, 0.28, 0.45)
ALPHAS = (0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9)
TRUNCATION_FACTORS = (1.01, 1.02, 1.03, 1.05, 1.07, 1.1, 1.15, 1.2, 1.3, 1.4)
METHODS = ("unguided", "cfg", "cfg+interval", "autoguidance", "autoguidance+interval", "mixed", "truncation")


@dataclass(frozen=True)
class GuideSource:
    """A run at a stored number of images, with the EMA widths that can be had there; or one model file.

    Attributes:
        run: the run folder, or the model file or published name.
        num_images: images seen; 0 where nobody knows.
        stds: widths, ascending.
        fixed: it is one model, whose width cannot be chosen.
    """

    run: str
    num_images: int
    stds: tuple[float, ...]
    fixed: bool = False

    def name(self, ema_std: float) -> str:
        """The model's name at the representable width nearest to ema_std."""
        if self.fixed:
            return self.run
        nearest = min(self.stds, key=lambda std: abs(std - ema_std))
        return f"{self.run}@{nearest:.3f}:{self.num_images}"

    @property
    def label(self) -> str:
        """Its name without a width and without a folder: searches on several machines, with other paths, are one search."""
        name = Path(self.run).name
        return name if self.fixed else f"{name}:{self.num_images}"


def guide_source(run: str, num_images: int | None = None) -> GuideSource:
    """A run at a stored time (None: the last) with the EMA widths that its snapshots can represent there.

    Args:
        run: a run folder (also RUN:COUNT), a model file, or the name of a published model. RUN@STD fixes the width.
        num_images: the stored time.

    Raises: UserError where it is not there.
    """
    if is_remote(run):
        return GuideSource(run, 0, (0.1,), fixed=True)
    parsed = parse_model_name(run)
    if parsed.path.is_file():
        info = read_model_info(parsed.path)
        return GuideSource(run, info.num_images, (info.ema_std or 0.1,), fixed=True)
    folder = str(parsed.path)
    snapshots = list_snapshots(folder)
    end = num_images or parsed.num_images or snapshots[-1].num_images
    stored = [(s.num_images, s.ema_std) for s in snapshots if s.num_images <= end]
    if not any(time == end for time, _ in stored):
        raise UserError(f"{run} has no snapshot at {end} images")
    wanted = EMA_STDS if parsed.ema_std is None else (parsed.ema_std,)
    errors = reconstruction_errors(stored, [(end, std) for std in wanted])
    stds = tuple(std for std, error in zip(wanted, errors, strict=True) if error <= MAX_PROFILE_ERROR)
    return GuideSource(folder, end, stds or tuple(sorted({std for time, std in stored if time == end})))


def early_snapshots(run: str, lowest: float = 1 / 32, highest: float = 0.5) -> list[GuideSource]:
    """A run's stored times from `lowest` to `highest` of its length, about four per doubling, as guides of the run itself."""
    times = sorted({snapshot.num_images for snapshot in list_snapshots(run)})
    end, chosen = times[-1], []
    for time in times:
        if lowest * end <= time <= highest * end and (not chosen or time >= 1.2 * chosen[-1]):
            chosen.append(time)
    return [guide_source(run, time) for time in chosen]


def weight_axis(values: Sequence[float]) -> Axis:
    """Of w. Between w = 1 and 1.5 lies as much as between 1.5 and 3."""
    coordinates = tuple(math.log(w - 0.75) for w in values)
    return Axis(name="weight", values=tuple(values), coordinates=coordinates, amounts=tuple(w - 1 for w in values))


def width_axis(name: str, stds: Sequence[float]) -> Axis:
    """Of an EMA width; the main model's matters without guidance, too."""
    coordinates = tuple(math.log(std) for std in stds)
    return Axis(name=name, values=tuple(stds), coordinates=coordinates, fades=name != "ema_main")


def _sigmas(name: str, values: Sequence[float]) -> Axis:
    # Beyond sigma = 12 all images look alike to a network, and below 0.03 finished.
    coordinates = tuple(math.log(min(v, 12) + 0.03) / 2 for v in values)
    return Axis(name=name, values=tuple(values), coordinates=coordinates, fades=True)


def guide_axis(guides: Sequence[GuideSource], main: GuideSource) -> Axis:
    """Of the guide, by the logarithm of its age; a category per run.

    How much it differs from the main model: at 1/4, 1/8 and 1/16 of the training in proportion 0.33, 0.57 and 1 (docs/log.md: on digits
    differences were measured as 0.35, 0.67 and 1). Beyond a third it is the smaller size that makes the difference, not the age.
    """

    def scale(guide: GuideSource) -> float:
        share = guide.num_images / main.num_images if guide.num_images and main.num_images else 1 / 16
        return (16 * min(share, 1 / 3)) ** -0.8

    runs = sorted({guide.run for guide in guides})
    return Axis(
        name="guide",
        values=tuple(guide.label for guide in guides),
        coordinates=tuple(math.log(max(guide.num_images, 1)) / 1.2 for guide in guides),
        categories=tuple(runs.index(guide.run) for guide in guides),
        fades=True,
        scales=tuple(scale(guide) for guide in guides),
    )


@dataclass(frozen=True)
class SearchSpace:
    """What can be chosen for one method.

    Attributes:
        method: one of `METHODS`.
        main: the main run.
        solver: used for every measurement.
        guides: autoguidance and mixed only.
        unconditional: CFG and mixed only.
        weights: values of w.
        alphas: values of alpha, from CFG (0) to autoguidance (1); mixed only.
        label: names it among others of the same method; None: the method.
        main_degraded, guide_degraded: what is done to the models, for experiments.
        same_ema: the guide has the main model's EMA width (as near as it can be had), so there is no axis for it.
    """

    method: str
    main: GuideSource
    solver: Solver
    guides: tuple[GuideSource, ...] = ()
    unconditional: GuideSource | None = None
    weights: tuple[float, ...] = WEIGHTS
    alphas: tuple[float, ...] = ALPHAS
    label: str | None = None
    same_ema: bool = False
    main_degraded: Degradation | None = None
    guide_degraded: Degradation | None = None

    @property
    def name(self) -> str:
        """Its label, or the method."""
        return self.label or self.method

    @property
    def _has_guides(self) -> bool:
        return self.method == "mixed" or self.method.startswith("autoguidance")

    @property
    def _has_unconditional(self) -> bool:
        return self.method == "mixed" or self.method.startswith("cfg")

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UserError(f"unknown method {self.method!r}; there are {', '.join(METHODS)}")
        if self._has_guides and not self.guides:
            raise UserError(f"{self.method} needs a guide: name a run, or a main run with early snapshots")
        labels = [guide.label for guide in self.guides]
        if len(set(labels)) < len(labels):
            twice = next(label for label in labels if labels.count(label) > 1)
            raise UserError(f"two guides are called {twice}; give their folders different names")
        if self._has_unconditional and self.unconditional is None:
            raise UserError(f"{self.method} needs an unconditional model; name one")

    @cached_property
    def grid(self) -> Grid:
        """The settings of this method."""
        if self.method == "truncation":
            logs = tuple(8 * math.log(factor) for factor in TRUNCATION_FACTORS)
            truncation = Axis(name="truncation", values=TRUNCATION_FACTORS, coordinates=logs)
            return Grid((truncation, width_axis("ema_main", self.main.stds)), frozenset())
        axes: list[Axis] = [] if self.method == "unguided" else [weight_axis(self.weights)]
        if self.method == "mixed":
            axes.append(Axis(name="alpha", values=self.alphas, coordinates=self.alphas, fades=True))
        if self.method.endswith("+interval"):
            axes += [_sigmas("sigma_hi", SIGMA_HIGH), _sigmas("sigma_lo", SIGMA_LOW)]
        excluded = set()
        if self._has_guides:
            axes.append(guide_axis(self.guides, self.main))
            if not self.same_ema:
                widths = sorted({std for guide in self.guides for std in guide.stds})
                excluded = {
                    ((len(axes) - 1, i), (len(axes), j))
                    for i, guide in enumerate(self.guides)
                    for j, std in enumerate(widths)
                    if std not in guide.stds
                }
                axes.append(width_axis("ema_guide", widths))
        axes.append(width_axis("ema_main", self.main.stds))
        if self._has_unconditional and not self.same_ema:
            assert self.unconditional is not None
            axes.append(width_axis("ema_unconditional", self.unconditional.stds))
        return Grid(tuple(axes), frozenset(excluded))

    def pair(self, setting: Mapping[str, Value]) -> Pair:
        """The pair that a setting stands for."""
        main = self.main.name(float(setting["ema_main"]))
        if self.method == "unguided":
            return Pair(main=main, main_degraded=self.main_degraded, solver=self.solver)
        if self.method == "truncation":
            return Pair(main=main, truncation=float(setting["truncation"]), solver=self.solver)
        interval = (
            (float(setting["sigma_lo"]), float(setting["sigma_hi"])) if self.method.endswith("+interval") else None
        )
        weight, cfg_weight = float(setting["weight"]), 1.0
        if self.method == "mixed":
            cfg_weight, weight = mixing_weights(weight, float(setting["alpha"]))
        elif self._has_unconditional:
            weight, cfg_weight = 1.0, weight
        guide = unconditional = None
        if self._has_guides:
            chosen = next(guide for guide in self.guides if guide.label == setting["guide"])
            guide = chosen.name(float(setting["ema_main" if self.same_ema else "ema_guide"]))
        if self._has_unconditional:
            assert self.unconditional is not None
            unconditional = self.unconditional.name(
                float(setting["ema_main" if self.same_ema else "ema_unconditional"])
            )
        return Pair(
            main=main,
            guide=guide if self.method != "mixed" or weight != 1 else None,  # alpha 0: CFG alone
            weight=weight,
            unconditional=unconditional if self.method != "mixed" or cfg_weight != 1 else None,
            cfg_weight=cfg_weight,
            interval=interval,
            main_degraded=self.main_degraded,
            guide_degraded=self.guide_degraded,
            solver=self.solver,
        )

    def starts(self, known: Mapping[str, Value], other_width: Value | None = None) -> list[Point]:
        """Points to begin with: what the literature suggests, and what served small data (docs/log.md).

        Args:
            known: the best setting of a simpler method, as far as its axes are here too.
            other_width: autoguidance only: an EMA width of the main model that served another method, for some of the points.
        """
        grid = self.grid
        other = {} if other_width is None else {"ema_main": other_width}

        def near(**wanted: Value) -> Point:
            return grid.nearest({name: value for name, value in {**known, **wanted}.items() if name in names})

        names = {axis.name for axis in grid.axes}
        middle = {"ema_main": 0.07} if "ema_main" not in known else {}
        if self.method == "unguided":
            return list(dict.fromkeys(near(ema_main=std) for std in (0.05, 0.1)))
        if self.method == "truncation":
            return list(dict.fromkeys(near(**middle, truncation=factor) for factor in (1.02, 1.05, 1.1)))
        if self.method == "mixed":
            w = float(known.get("weight", 1.4))
            return list(dict.fromkeys(near(**middle, weight=w, alpha=alpha) for alpha in (0.5, 0.75, 0.25)))
        if self.method == "cfg":
            return list(
                dict.fromkeys(near(**{"ema_unconditional": 0.07, **middle, "weight": w}) for w in (1.2, 1.6, 2.0))
            )
        if self.method == "cfg+interval":
            w = float(known.get("weight", 1.3))
            ends = ((1.0, 2.7, 0.1), (1.25, 1.8, 0.17), (1.25, 4.0, 0.1), (1.0, 80.0, 0.17))
            return list(
                dict.fromkeys(near(**middle, weight=w * f, sigma_hi=high, sigma_lo=low) for f, high, low in ends)
            )
        whole = {"sigma_hi": 80.0, "sigma_lo": 0.0} if self.method.endswith("+interval") else {}
        starts = []
        # The paper's rule of thumb (a sixteenth of the training, w = 2) first, then older guides: which age is best differs by data.
        trained = [g for g in self.guides if g.run != self.main.run]
        own = [g for g in self.guides if g.run == self.main.run]
        wanted = (
            (trained, 1 / 16, 2.0, 0.125, middle),
            (trained, 1 / 8, 1.4, 0.125, {**middle, **other}),
            (own, 1 / 6, 1.3, 0.2, middle),
            (own, 1 / 3, 1.5, 0.1, {**middle, **other}),
            (own, 1 / 12, 1.2, 0.2, middle),
        )
        for guides, share, w, std, main in wanted:
            guide = self._nearest(guides, share)
            if guide is not None:
                starts.append(near(**main, **whole, guide=guide.label, ema_guide=std, weight=w))
        return list(dict.fromkeys(starts))

    def _nearest(self, guides: Sequence[GuideSource], share: float) -> GuideSource | None:
        wanted = math.log(max(share * self.main.num_images, 1))
        return min(guides, key=lambda g: abs(math.log(max(g.num_images, 1)) - wanted), default=None)
