"""The search for a guidance setting: what is searched, how, and how a setting is measured."""

from autoguidance.tune.measuring import Measured, Measurer, MeasureSettings, Task, end_with_parent, measurer
from autoguidance.tune.search import Search, coordinate_search
from autoguidance.tune.space import EMA_STDS, WEIGHTS, GuideSource, SearchSpace, early_snapshots, guide_source

__all__ = [
    "EMA_STDS",
    "WEIGHTS",
    "GuideSource",
    "MeasureSettings",
    "Measured",
    "Measurer",
    "Search",
    "SearchSpace",
    "Task",
    "coordinate_search",
    "early_snapshots",
    "end_with_parent",
    "guide_source",
    "measurer",
]
