"""Searches for the guide, w and both widths replayed on a measured landscape: how far from its best point they end.

    python benchmarks/search_guides.py [benchmarks/landscape-guides.json] [--seeds 10]

The landscape (see landscape_guides.py) is interpolated to the grid that `tune` searches. Every measurement gets noise of
its own, drawn by seed: a standard deviation of 2 % at the full count, more on fewer images. Regret is the distance
(without noise) of the setting a search ends with over the grid's best, minus 1. Compared at equal images, in full
measurements: the search as it is, from two kinds of starting points; without what it knows of w = 1; and by w in place of
the guide's push (see tune/grid.py). The last line is one JSON line.
"""

import argparse
import json
import math
import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.interpolate import PchipInterpolator

from autoguidance.sample import Heun
from autoguidance.tune import Finished, Grid, Policy, SearchPlan, SearchSpace, State, Unit
from autoguidance.tune.grid import Point
from autoguidance.tune.space import EMA_STDS, WEIGHTS, GuideSource

MEASUREMENTS = (6, 12)
NOISE = 0.02
# (settings are compared by the push, the unguided distances are known, an EMA width of the main model to begin with as well)
VARIANTS = ((True, True, None), (True, True, 0.03), (True, False, None), (False, False, None))


class GuidesLandscape:
    """Distances of every point of the search's own grid, and of the main model alone."""

    def __init__(self, path: Path) -> None:
        content = json.loads(path.read_text())
        axes = content["axes"]
        self.counts: tuple[int, ...] = tuple(axes["num_images"])
        widths, weights = axes["ema_main"], axes["weight"]
        self.stds = tuple(std for std in EMA_STDS if widths[0] <= std <= widths[-1])
        labels = [label.rpartition(":") for label in axes["guide"]]
        guides = tuple(GuideSource(run, int(images), self.stds) for run, _, images in labels)
        main = GuideSource("main", int(content["main"].split()[1]), self.stds)
        inside = tuple(w for w in WEIGHTS if w <= weights[-1])
        self.space = SearchSpace("autoguidance", main, Heun(num_steps=6), guides, weights=inside)
        # log distance, through three widths by a parabola, along w (from the main model alone at w = 1) without overshooting
        unguided = np.log(np.array(content["unguided"]))  # [main, count]
        measured = np.log(np.array(content["fd"]))  # [guide, w, main, EMA of the guide, count]
        to_widths = _parabola(np.log(widths), np.log(self.stds))
        self.unguided = np.exp(to_widths @ unguided)
        alone = np.broadcast_to(unguided[None, None, :, None, :], (len(guides), 1, *measured.shape[2:]))
        along = PchipInterpolator(_scale([1.0, *weights]), np.concatenate([alone, measured], axis=1), axis=1)
        fine = np.einsum("mi,gwijc,nj->wmgnc", to_widths, along(_scale(inside)), to_widths)
        self.fd = np.exp(fine)  # [w, main, guide, EMA of the guide, count]
        names = [axis.name for axis in self.space.grid.axes]
        order = ["weight", "ema_main", "guide", "ema_guide"]
        self.fd = np.moveaxis(self.fd, [order.index(name) for name in names], range(len(names)))

    def regret(self, point: Point) -> float:
        """How much worse a point is than the best."""
        return float(self.fd[(*point, -1)] / self.fd[..., -1].min() - 1)

    def known(self) -> list[tuple[dict[str, float | str], int, float]]:
        """What a search of the unguided model measures: two starting points, and its best."""
        best = self.stds[int(self.unguided[:, -1].argmin())]
        found: list[tuple[dict[str, float | str], int, float]] = []
        for std in dict.fromkeys((0.05, 0.1, best)):
            values = self.unguided[self.stds.index(std)].tolist()
            found += [({"ema_main": std}, count, value) for count, value in zip(self.counts, values, strict=True)]
        return found


def _scale(weights: list[float] | tuple[float, ...]) -> np.ndarray:
    return np.log(np.asarray(weights) - 0.75)


def _parabola(nodes: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """[wanted, nodes]: Lagrange's polynomials."""
    rows = [np.prod([(wanted - b) / (a - b) for b in nodes if b != a], axis=0) for a in nodes]
    return np.stack(rows, axis=1)


def searched(
    landscape: GuidesLandscape, measurements: int, seed: int, *, push: bool, unguided: bool, other_width: float | None
) -> tuple[float, float]:
    """(regret, share of the settings with w of at most 1.1) of one search."""
    space, counts = landscape.space, landscape.counts
    grid = space.grid
    if not push:
        grid = Grid(tuple(replace(axis, fades=False, amounts=(), scales=()) for axis in grid.axes), grid.excluded)
    known = landscape.known()
    best = min((value, setting["ema_main"]) for setting, count, value in known if count == counts[-1])[1]
    plan = SearchPlan(counts=counts, budget=measurements * counts[-1], finalists=0)
    policy = Policy(grid, space.starts({"ema_main": best}, other_width), plan, unguided=known if unguided else ())
    finished: list[Finished] = []
    while (unit := policy.next(State(tuple(finished)))) is not None:
        finished.append(Finished(unit, _noisy(landscape, grid, unit, seed), {}, len(finished)))
    best_point = policy.best(State(tuple(finished)))
    assert best_point is not None
    weights = [float(dict(item.unit.setting)["weight"]) for item in finished]
    return landscape.regret(best_point.point), sum(w <= 1.1 for w in weights) / len(weights)


def _noisy(landscape: GuidesLandscape, grid: Grid, unit: Unit, seed: int) -> float:
    point = grid.point(unit.values)
    assert point is not None
    rung = landscape.counts.index(unit.num_images)
    drawn = np.random.default_rng([seed, rung, *point]).standard_normal()
    return float(
        landscape.fd[(*point, rung)] * math.exp(NOISE * math.sqrt(landscape.counts[-1] / unit.num_images) * drawn)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = Path(__file__).parent / "landscape-guides.json"
    parser.add_argument("landscape", type=Path, nargs="?", default=here)
    parser.add_argument("--seeds", type=int, default=10)
    arguments = parser.parse_args()
    landscape = GuidesLandscape(arguments.landscape)
    fd = landscape.fd[..., -1]
    best = tuple(int(i) for i in np.unravel_index(fd.argmin(), fd.shape))
    chosen = landscape.space.grid.setting(best)
    print(f"best {fd.min():.4f} at {chosen}, unguided {landscape.unguided[:, -1].min():.4f}")  # noqa: T201
    results = []
    for push, unguided, width in VARIANTS:
        for measurements in MEASUREMENTS:
            runs = [
                searched(landscape, measurements, seed, push=push, unguided=unguided, other_width=width)
                for seed in range(arguments.seeds)
            ]
            regrets = [regret for regret, _ in runs]
            row = {
                "push": push,
                "unguided": unguided,
                "other_width": width,
                "measurements": measurements,
                "regret_median": statistics.median(regrets),
                "regret_worst": max(regrets),
                "share_of_w_up_to_1.1": statistics.mean(share for _, share in runs),
            }
            results.append(row)
            print(json.dumps(row), flush=True)  # noqa: T201
    print(json.dumps({"landscape": arguments.landscape.name, "seeds": arguments.seeds, "results": results}))  # noqa: T201


if __name__ == "__main__":
    main()
