"""What the figures mean: feature networks, statistics, distances, and the protocol that every figure carries.

Images in (any iterator of uint8 batches), rows of results.json out; how the images were made is none of its business.
"""

from autoguidance.evaluate.classifier import ClassifierFeatures, ClassifierInfo, load_classifier
from autoguidance.evaluate.classifier_training import train_classifier
from autoguidance.evaluate.evaluation import (
    Measurement,
    Reference,
    batch_statistics,
    evaluate_images,
    half_distance,
    protocol_of,
    source_statistics,
    split_images,
)
from autoguidance.evaluate.features import FeatureNetwork, PixelFeatures, extract_features, image_batches
from autoguidance.evaluate.frechet import FewImagesWarning, FrechetTerms, frechet_distance, frechet_terms
from autoguidance.evaluate.generated import GeneratedImages, open_generated, row_details
from autoguidance.evaluate.networks import default_classifier_path, open_network
from autoguidance.evaluate.protocol import Protocol, require_comparable
from autoguidance.evaluate.statistics import Accumulator, Statistics, is_statistics_file

__all__ = [
    "Accumulator",
    "ClassifierFeatures",
    "ClassifierInfo",
    "FeatureNetwork",
    "FewImagesWarning",
    "FrechetTerms",
    "GeneratedImages",
    "Measurement",
    "PixelFeatures",
    "Protocol",
    "Reference",
    "Statistics",
    "batch_statistics",
    "default_classifier_path",
    "evaluate_images",
    "extract_features",
    "frechet_distance",
    "frechet_terms",
    "half_distance",
    "image_batches",
    "is_statistics_file",
    "load_classifier",
    "open_generated",
    "open_network",
    "protocol_of",
    "require_comparable",
    "row_details",
    "source_statistics",
    "split_images",
    "train_classifier",
]
