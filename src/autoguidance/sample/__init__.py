"""Solvers, per-image seeds, and sampling."""

from autoguidance.sample.cost import Counted
from autoguidance.sample.euler import Euler
from autoguidance.sample.heun import Heun
from autoguidance.sample.sampler import SampleBatch, image_encoder, micro_batch_size, sample, sample_batches
from autoguidance.sample.seeds import ClassSelection, SeededNoise, parse_seeds, proportional_classes
from autoguidance.sample.solver import Solver
from autoguidance.sample.solvers import SOLVERS, make_solver, solver_from_description

__all__ = [
    "SOLVERS",
    "ClassSelection",
    "Counted",
    "Euler",
    "Heun",
    "SampleBatch",
    "SeededNoise",
    "Solver",
    "image_encoder",
    "make_solver",
    "micro_batch_size",
    "parse_seeds",
    "proportional_classes",
    "sample",
    "sample_batches",
    "solver_from_description",
]
