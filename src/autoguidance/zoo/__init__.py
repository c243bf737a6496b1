"""A model's or pair's name to a Denoiser."""

from autoguidance.storage import cache_folder
from autoguidance.zoo.download import fetch, is_url
from autoguidance.zoo.imports import import_network, import_reference, is_cached, published_network
from autoguidance.zoo.names import ModelName, identify, is_remote, load, parse_model_name
from autoguidance.zoo.pairs import Pair
from autoguidance.zoo.published import LICENCE_NOTICE, PUBLISHED_PAIRS, PublishedPair, file_url, network_preset
from autoguidance.zoo.runs import Snapshot, average, list_snapshots

__all__ = [
    "LICENCE_NOTICE",
    "PUBLISHED_PAIRS",
    "ModelName",
    "Pair",
    "PublishedPair",
    "Snapshot",
    "average",
    "cache_folder",
    "fetch",
    "file_url",
    "identify",
    "import_network",
    "import_reference",
    "is_cached",
    "is_remote",
    "is_url",
    "list_snapshots",
    "load",
    "network_preset",
    "parse_model_name",
    "published_network",
]
