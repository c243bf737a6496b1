"""The 2D toy: why a bad version of the model is a better guide than a model without the condition, in figures that
can be checked.

Problem: on images nobody knows the true density, so what a guidance method does to it can only be guessed. Here the
truth is a fractal tree of Gaussians. A main model of class A, a bad version of it (half the width, an eighth of the
iterations) and a model of both classes are trained; class A is then sampled five ways, all from the same starting
points x ~ p(x; sigma_max):

    truth         exact samples              none          the main model alone
    cfg           D_AB + w (D_main - D_AB)   truncation    the score times a constant
    autoguidance  D_bad + w (D_main - D_bad)

What the paper shows by pictures is measured for each panel, against the exact density p of class A at sigma = 0:

    outside_99        share of samples whose log p is lower than that of 99 % of true samples (0.01 for a perfect sampler)
    mean_log_density  mean of log p in nats: falls with outliers (one far away can decide it: see median_log_density too), rises
                      with over-concentration
    coverage          share of true samples with a generated one within `coverage_radius`
    lost_mass         sum over parts of the tree of max(0, true mass - generated mass); a sample's mass is divided among the parts
                      by their posterior probabilities. Parts: the trunk and its two limbs ("branches"), and finer ones by depth.

Reference: Karras et al. 2024, "Guiding a Diffusion Model with a Bad Version of Itself", arXiv 2406.02507, Section 3,
Appendix C.
"""

import math
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from autoguidance.diffusion.denoiser import Denoiser
from autoguidance.errors import UserError
from autoguidance.guidance import Autoguidance, ClassifierFree, NaiveTruncation
from autoguidance.models.toy import ToyNetwork
from autoguidance.models.toy_mixture import MAX_DEPTH, GaussianMixture2D, grow_trees, subtree_index, toy_mixture
from autoguidance.sample import Heun
from autoguidance.storage import make_folder, write_json
from autoguidance.train.toy import ToyTraining, one_thread_per_operation, stream, train_toy

ProgressCallback = Callable[[int, int, dict[str, Any]], None]

PANELS = ("truth", "none", "cfg", "truncation", "autoguidance")


@dataclass(frozen=True, kw_only=True)
class ToyStudy:
    """The whole experiment; the defaults are the paper's.

    Attributes:
        main_width, main_iterations: the main model (class A).
        guide_width, guide_iterations: the bad version (class A) and the unconditional model (A and B).
        batch_size: points per training step.
        autoguidance_weight, cfg_weight, truncation_factor: strength of each method.
        num_steps, sigma_min, sigma_max, rho: Heun's schedule; sampling starts from p(x; sigma_max).
        num_samples: generated points per panel.
        num_reference: true samples that coverage asks about.
        num_threshold: true samples that the 99 % threshold is taken from.
        coverage_radius: what counts as nearby.
        seed: fixes everything random.
    """

    main_width: int = 64
    main_iterations: int = 4096
    guide_width: int = 32
    guide_iterations: int = 512
    batch_size: int = 4096
    autoguidance_weight: float = 3.0
    cfg_weight: float = 4.0
    truncation_factor: float = 1.40
    num_steps: int = 32
    sigma_min: float = 0.002
    sigma_max: float = 5.0
    rho: float = 7.0
    num_samples: int = 16384
    num_reference: int = 16384
    num_threshold: int = 65536
    coverage_radius: float = 0.02
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("num_samples", "num_reference", "num_threshold"):
            if getattr(self, name) < 1:
                raise UserError(f"toy study: {name} is {getattr(self, name)}; choose at least 1")
        if not (math.isfinite(self.coverage_radius) and self.coverage_radius > 0):
            raise UserError(f"toy study: coverage_radius is {self.coverage_radius}; choose a positive distance")
        self.trainings()
        self.solver()

    def trainings(self) -> dict[str, ToyTraining]:
        """How "main", "bad" and "unconditional" are trained, each with a seed of its own."""
        sizes = {
            "main": (self.main_width, self.main_iterations),
            "bad": (self.guide_width, self.guide_iterations),
            "unconditional": (self.guide_width, self.guide_iterations),
        }
        return {
            name: ToyTraining(width=width, iterations=count, batch_size=self.batch_size, seed=3 * self.seed + index)
            for index, (name, (width, count)) in enumerate(sizes.items())
        }

    def solver(self) -> Heun:
        """The solver of every panel."""
        return Heun(num_steps=self.num_steps, sigma_min=self.sigma_min, sigma_max=self.sigma_max, rho=self.rho)

    def generator(self, purpose: int) -> torch.Generator:
        """Random numbers for one purpose, apart from those of training."""
        return stream(self.seed, 2, purpose)


class ToyModels(NamedTuple):
    """The three networks."""

    main: ToyNetwork
    bad: ToyNetwork
    unconditional: ToyNetwork


def train_models(study: ToyStudy, progress: ProgressCallback | None = None) -> ToyModels:
    """Train the three networks side by side: the guides in threads, the main model, which takes longest, in this one."""
    trainings = study.trainings()
    stop = threading.Event()

    def go_on(done: int, total: int, figures: dict[str, Any]) -> None:
        if stop.is_set():
            raise InterruptedError("training was stopped")

    with ThreadPoolExecutor(max_workers=2, thread_name_prefix="toy-guide") as executor:
        try:
            bad = executor.submit(train_toy, toy_mixture("A"), trainings["bad"], progress=go_on)
            both = executor.submit(
                train_toy, toy_mixture("AB"), trainings["unconditional"], num_classes=0, progress=go_on
            )
            main = train_toy(toy_mixture("A"), trainings["main"], progress=progress)
            return ToyModels(main, bad.result(), both.result())
        finally:
            stop.set()


def methods(models: ToyModels, study: ToyStudy) -> dict[str, Denoiser]:
    """The denoiser of every generated panel."""
    return {
        "none": models.main,
        "cfg": ClassifierFree(models.main, models.unconditional, study.cfg_weight),
        "truncation": NaiveTruncation(models.main, study.truncation_factor),
        "autoguidance": Autoguidance(models.main, models.bad, study.autoguidance_weight),
    }


def sample_paths(denoiser: Denoiser, start: Float[Tensor, "N 2"], solver: Heun) -> Float[Tensor, "num_steps+1 N 2"]:
    """Walk from points at sigma_max to samples at sigma = 0; the points before every step, and at the end."""
    path: list[Tensor] = []

    def record(step: int, sigma: float, x: Tensor) -> None:
        path.append(x.reshape(-1, 2).clone())

    # The solver starts from sigma_max times its argument. Here that is a noisy sample instead of pure noise.
    solver.integrate(denoiser, start.reshape(-1, 2, 1, 1) / solver.sigma_max, callback=record)
    return torch.stack(path)


def log_density_threshold(
    mixture: GaussianMixture2D, num: int, generator: torch.Generator, share: float = 0.99
) -> float:
    """The log p at sigma = 0 that `share` of true samples exceed: the level of the contour that holds this much of the mass."""
    log_density = mixture.log_density(mixture.sample(num, generator).double())
    return float(torch.quantile(log_density, 1 - share))


def coverage(samples: Float[Tensor, "N 2"], reference: Float[Tensor, "M 2"], radius: float) -> float:
    """Share of reference points with a sample within `radius`."""
    from sklearn.neighbors import KDTree

    distance, _ = KDTree(samples.double().numpy()).query(reference.double().numpy(), k=1)
    return float((distance[:, 0] <= radius).mean())


def lost_mass(mixture: GaussianMixture2D, paths: tuple[str, ...], samples: Float[Tensor, "N 2"]) -> dict[str, Any]:
    """Probability mass that samples of `mixture` lack in parts of its tree.

    Args:
        mixture: the truth, one class.
        paths: where each of its branches hangs, as in `FractalTree`.
        samples: generated points.

    Returns: "branches" {"trunk" | "+" | "-": {"true", "generated", "lost"}}, "sum" of their losses, and "sum_by_depth": the sum when
    every branch above that depth and every subtree at it is a part of its own. Finer parts lose more, by chance too: compare with truth.
    """
    true = mixture.branch_weights()
    generated = mixture.responsibilities(samples.double()).mean(0)
    branches: dict[str, dict[str, float]] = {}
    by_depth: dict[str, float] = {}
    for depth in range(1, MAX_DEPTH + 1):
        index, names = subtree_index(paths, depth)
        totals = [torch.zeros(len(names), dtype=torch.float64).index_add_(0, index, mass) for mass in (true, generated)]
        lost = (totals[0] - totals[1]).clamp_min(0)
        by_depth[str(depth)] = float(lost.sum())
        if depth == 1:
            for part, name in enumerate(names):
                values = {
                    "true": float(totals[0][part]),
                    "generated": float(totals[1][part]),
                    "lost": float(lost[part]),
                }
                branches[name or "trunk"] = values
    return {"branches": branches, "sum": by_depth["1"], "sum_by_depth": by_depth}


def measure(
    samples: Float[Tensor, "N 2"],
    mixture: GaussianMixture2D,
    *,
    threshold: float,
    reference: Float[Tensor, "M 2"],
    radius: float,
    paths: tuple[str, ...],
) -> dict[str, Any]:
    """The figures of one panel; see the module's docstring."""
    log_density = mixture.log_density(samples.double())
    return {
        "outside_99": float((log_density < threshold).double().mean()),
        "mean_log_density": float(log_density.mean()),
        "median_log_density": float(log_density.median()),
        "coverage": coverage(samples, reference, radius),
        "lost_mass": lost_mass(mixture, paths, samples),
    }


def run_toy(
    out: Path | str,
    study: ToyStudy | None = None,
    *,
    figures: bool = True,
    progress: ProgressCallback | None = None,
) -> dict[str, Any]:
    """Train, sample, measure and draw; write `results.json` and the figures into `out`.

    Args:
        out: a folder; created before anything is computed.
        study: the settings; None: the paper's.
        figures: draw Figures 1, 2 and 9 as PNG and SVG.
        progress: called with (done, total, figures) during training.

    Returns: what `results.json` holds.

    Raises: UserError where the folder cannot be written.
    """
    study = study or ToyStudy()
    out = make_folder(out)
    started = time.monotonic()
    truth = toy_mixture("A")
    solver = study.solver()
    with one_thread_per_operation():
        models = train_models(study, progress)
        trained = time.monotonic()

        start = truth.sample(study.num_samples, study.generator(0), study.sigma_max)
        ways = methods(models, study)
        with ThreadPoolExecutor(max_workers=os.cpu_count() or 1, thread_name_prefix="toy-panel") as executor:
            walks = {name: executor.submit(sample_paths, way, start, solver) for name, way in ways.items()}
            paths = {name: walk.result() for name, walk in walks.items()}
        samples = {"truth": truth.sample(study.num_samples, study.generator(1))}
        samples.update({name: path[-1] for name, path in paths.items()})

        threshold = log_density_threshold(truth, study.num_threshold, study.generator(2))
        reference = truth.sample(study.num_reference, study.generator(3))
        tree = grow_trees()[0]
        panels = {
            name: measure(
                samples[name],
                truth,
                threshold=threshold,
                reference=reference,
                radius=study.coverage_radius,
                paths=tree.paths,
            )
            for name in PANELS
        }
        measured = time.monotonic()
        if figures:
            # matplotlib takes most of a second to import: only where something is drawn.
            from autoguidance.report.toy_figures import draw_figures

            names = draw_figures(out, models, samples, panels, paths)
        else:
            names = []
    results = {
        "protocol": {
            **asdict(study),
            "classes": {"main": "A", "bad": "A", "unconditional": "A+B"},
            "training": {name: asdict(training) for name, training in study.trainings().items()},
            "solver": solver.describe(),
            "start": "x ~ p(x; sigma_max) of class A, the same for every panel but truth",
            "threshold_log_density": threshold,
            "torch": torch.__version__,
        },
        "panels": panels,
        "figures": names,
        "seconds": {
            "training": trained - started,
            "sampling_and_measuring": measured - trained,
            "drawing": time.monotonic() - measured,
        },
    }
    write_json(out / "results.json", results)
    return results
