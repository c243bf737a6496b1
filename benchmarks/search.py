"""Searches replayed on a measured landscape: how far from its best point each ends, for its budget of images.

    python benchmarks/search.py [benchmarks/landscape-digits.json] [--seeds 5]

The landscape (see landscape.py) holds the distance of every grid point at each number of images, so a search costs
nothing but its own thinking. Regret is the distance of the setting it ends with over the grid's best, minus 1, at the
full count. Compared at equal images: this project's policy with all rungs and with the full count alone; Optuna's TPE
and Gaussian process samplers, and random choice, at the full count. The last line is one JSON line.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from autoguidance.tune import Axis, Finished, Grid, Policy, SearchPlan, State
from autoguidance.tune.grid import Point

SHARES = (0.005, 0.01, 0.02, 0.05)


class Landscape:
    """A grid and its distances, [w, EMA_main, EMA_guide, count]."""

    def __init__(self, path: Path) -> None:
        content = json.loads(path.read_text())
        axes = content["axes"]
        self.counts: tuple[int, ...] = tuple(axes["num_images"])
        self.fd = np.array(content["fd"])
        weights = tuple(axes["weight"])
        found = [Axis(name="weight", values=weights, coordinates=tuple(math.log(w - 0.75) for w in weights))]
        for name in ("ema_main", "ema_guide"):
            stds = tuple(axes[name])
            found.append(Axis(name=name, values=stds, coordinates=tuple(math.log(std) for std in stds)))
        self.grid = Grid(tuple(found))

    @property
    def num_images(self) -> int:
        """Images of the whole grid."""
        return self.fd[..., -1].size * self.counts[-1]

    def regret(self, point: Point) -> float:
        """How much worse a point is than the best."""
        return float(self.fd[(*point, -1)] / self.fd[..., -1].min() - 1)

    def starts(self, seed: int) -> list[Point]:
        """The rule of thumb (w = 2), a careful version of it, and a point drawn by seed."""
        drawn = self.grid.points[np.random.default_rng(seed).integers(len(self.grid.points))]
        thumbs = [{"weight": w, "ema_main": 0.07, "ema_guide": 0.125} for w in (2.0, 1.3)]
        return [*(self.grid.nearest(thumb) for thumb in thumbs), drawn]


def ours(landscape: Landscape, budget: int, seed: int, counts: tuple[int, ...]) -> tuple[float, int]:
    """(regret, images) of this project's policy."""
    plan = SearchPlan(counts=counts, budget=budget, finalists=0, random_seed=seed)
    policy = Policy(landscape.grid, landscape.starts(seed), plan)
    finished: list[Finished] = []
    while (unit := policy.next(State(tuple(finished)))) is not None:
        point = landscape.grid.point(unit.values)
        assert point is not None
        value = float(landscape.fd[(*point, landscape.counts.index(unit.num_images))])
        finished.append(Finished(unit, value, {}, len(finished)))
    best = policy.best(State(tuple(finished)))
    assert best is not None
    return landscape.regret(best.point), policy.spent(State(tuple(finished)))


def optuna_search(landscape: Landscape, budget: int, seed: int, sampler: str) -> tuple[float, int]:
    """(regret, images) of one of Optuna's samplers at the full count; a setting that comes again costs nothing."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    made = {
        "tpe": lambda: optuna.samplers.TPESampler(seed=seed, multivariate=True),
        "gp": lambda: optuna.samplers.GPSampler(seed=seed),
        "random": lambda: optuna.samplers.RandomSampler(seed=seed),
    }[sampler]()
    study = optuna.create_study(sampler=made)
    for point in landscape.starts(seed):
        study.enqueue_trial(dict(zip("abc", point, strict=True)))
    seen: set[Point] = set()
    for _ in range(20 * budget // landscape.counts[-1]):
        if (len(seen) + 1) * landscape.counts[-1] > budget:
            break
        trial = study.ask()
        point = tuple(
            trial.suggest_int(name, 0, size - 1) for name, size in zip("abc", landscape.grid.sizes, strict=True)
        )
        seen.add(point)
        study.tell(trial, float(landscape.fd[(*point, -1)]))
    best = study.best_params
    return landscape.regret(tuple(best[name] for name in "abc")), len(seen) * landscape.counts[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = Path(__file__).parent / "landscape-digits.json"
    parser.add_argument("landscape", type=Path, nargs="?", default=here)
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    landscape = Landscape(arguments.landscape)
    searches: dict[str, Callable[[int, int], tuple[float, int]]] = {
        "ours, all rungs": lambda budget, seed: ours(landscape, budget, seed, landscape.counts),
        "ours, full count": lambda budget, seed: ours(landscape, budget, seed, landscape.counts[-1:]),
        **{
            f"optuna {name}": lambda budget, seed, name=name: optuna_search(landscape, budget, seed, name)
            for name in ("gp", "tpe", "random")
        },
    }
    results = []
    for name, search in searches.items():
        for share in SHARES:
            begun = time.perf_counter()
            runs = [search(int(share * landscape.num_images), seed) for seed in range(arguments.seeds)]
            regrets = [regret for regret, _ in runs]
            seconds = (time.perf_counter() - begun) / arguments.seeds
            row = {
                "search": name,
                "share_of_grid": share,
                "regret_median": statistics.median(regrets),
                "regret_worst": max(regrets),
                "seconds": round(seconds, 2),
            }
            results.append(row)
            print(  # noqa: T201
                f"{name:18s} {share:6.1%} of the grid's images: median {row['regret_median']:7.2%}, "
                f"worst {row['regret_worst']:7.2%}, {seconds:.1f} s",
                flush=True,
            )
    print(json.dumps({"landscape": arguments.landscape.name, "seeds": arguments.seeds, "results": results}))  # noqa: T201


if __name__ == "__main__":
    main()
