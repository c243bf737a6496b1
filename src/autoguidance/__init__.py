"""Autoguidance: better diffusion samples by guiding a model with a bad version of itself.

    import autoguidance as ag
    main, guide = ag.load("runs/digits/main@0.070"), ag.load("runs/digits/guide")
    images = ag.sample(ag.Autoguidance(main, guide, weight=1.5), seeds=range(64))

Reference: Karras et al. 2024, "Guiding a Diffusion Model with a Bad Version of Itself", arXiv 2406.02507.
"""

from autoguidance.diffusion.denoiser import Denoiser
from autoguidance.errors import UserError
from autoguidance.evaluate import Statistics, frechet_distance
from autoguidance.guidance import Autoguidance, ClassifierFree, MultiGuidance, NaiveTruncation
from autoguidance.sample import Euler, Heun, sample
from autoguidance.zoo import Pair, load

__all__ = [
    "Autoguidance",
    "ClassifierFree",
    "Denoiser",
    "Euler",
    "Heun",
    "MultiGuidance",
    "NaiveTruncation",
    "Pair",
    "Statistics",
    "UserError",
    "frechet_distance",
    "load",
    "sample",
]
