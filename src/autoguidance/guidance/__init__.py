"""Guidance methods, each a Denoiser built from denoisers."""

from autoguidance.guidance.autoguidance import Autoguidance
from autoguidance.guidance.classifier_free import ClassifierFree
from autoguidance.guidance.degraded import Degradation, Degraded, degrade
from autoguidance.guidance.guided import Guided, Interval
from autoguidance.guidance.multi import MultiGuidance, mixing_weights
from autoguidance.guidance.truncation import NaiveTruncation

__all__ = [
    "Autoguidance",
    "ClassifierFree",
    "Degradation",
    "Degraded",
    "Guided",
    "Interval",
    "MultiGuidance",
    "NaiveTruncation",
    "degrade",
    "mixing_weights",
]
