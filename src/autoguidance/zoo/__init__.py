"""A model's or pair's name to a Denoiser."""

from autoguidance.zoo.names import ModelName, load, parse_model_name
from autoguidance.zoo.pairs import Pair
from autoguidance.zoo.runs import Snapshot, average, list_snapshots

__all__ = ["ModelName", "Pair", "Snapshot", "average", "list_snapshots", "load", "parse_model_name"]
