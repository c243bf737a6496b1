"""Networks and their files."""

from autoguidance.models.files import (
    ModelInfo,
    all_finite,
    assemble_model,
    load_model,
    read_model_info,
    read_weights,
    save_model,
)
from autoguidance.models.precond import Precond, build_model

__all__ = [
    "ModelInfo",
    "Precond",
    "all_finite",
    "assemble_model",
    "build_model",
    "load_model",
    "read_model_info",
    "read_weights",
    "save_model",
]
