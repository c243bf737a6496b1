"""What the figures mean: feature networks, statistics, distances, and the protocol that every figure carries.

Images in (any iterator of uint8 batches), rows of results.json out; how the images were made is none of its business.
"""

from autoguidance.evaluate.classifier import ClassifierFeatures, ClassifierInfo, load_classifier
from autoguidance.evaluate.classifier_training import train_classifier
from autoguidance.evaluate.comparison import Result, compare_results, read_result
from autoguidance.evaluate.evaluation import (
    METRICS,
    Measurement,
    check_metrics,
    evaluate_images,
    planned_protocol,
    protocol_of,
    split_images,
)
from autoguidance.evaluate.feature_cache import FeatureCache
from autoguidance.evaluate.feature_sets import FeatureSet, Images, feature_sets
from autoguidance.evaluate.features import FeatureNetwork, PixelFeatures, extract_features, image_batches
from autoguidance.evaluate.frechet import FewImagesWarning, FrechetTerms, frechet_distance, frechet_terms
from autoguidance.evaluate.generated import GeneratedImages, open_generated, row_details
from autoguidance.evaluate.kid import Kid, KidSettings, kernel_distance
from autoguidance.evaluate.manifold import ManifoldFigures, Neighbourhoods, manifold_figures, neighbourhoods
from autoguidance.evaluate.networks import default_classifier_path, open_network
from autoguidance.evaluate.processes import Processes
from autoguidance.evaluate.protocol import Protocol, require_comparable
from autoguidance.evaluate.references import (
    NUM_REAL_KEPT,
    Reference,
    batch_statistics,
    half_distance,
    source_references,
    source_statistics,
)
from autoguidance.evaluate.statistics import Accumulator, Statistics, is_statistics_file, read_statistics_file

__all__ = [
    "METRICS",
    "NUM_REAL_KEPT",
    "Accumulator",
    "ClassifierFeatures",
    "ClassifierInfo",
    "FeatureCache",
    "FeatureNetwork",
    "FeatureSet",
    "FewImagesWarning",
    "FrechetTerms",
    "GeneratedImages",
    "Images",
    "Kid",
    "KidSettings",
    "ManifoldFigures",
    "Measurement",
    "Neighbourhoods",
    "PixelFeatures",
    "Processes",
    "Protocol",
    "Reference",
    "Result",
    "Statistics",
    "batch_statistics",
    "check_metrics",
    "compare_results",
    "default_classifier_path",
    "evaluate_images",
    "extract_features",
    "feature_sets",
    "frechet_distance",
    "frechet_terms",
    "half_distance",
    "image_batches",
    "is_statistics_file",
    "kernel_distance",
    "load_classifier",
    "manifold_figures",
    "neighbourhoods",
    "open_generated",
    "open_network",
    "planned_protocol",
    "protocol_of",
    "read_result",
    "read_statistics_file",
    "require_comparable",
    "row_details",
    "source_references",
    "source_statistics",
    "split_images",
    "train_classifier",
]
