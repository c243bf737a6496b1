"""Training and reference images: where they come from, what is wrong with them, and how they become the network's
input.

`open_data(name)` checks every image and gives an `ImageSource`; `make_encoder(config)` turns its uint8 images into
float32 latents and back. `convert.py` writes a set anew as square PNG files, `encode.py` as latents of a VAE, which
`open_data(name, latents=True)` opens as a `LatentSource`. Pillow, scikit-learn, `datasets` and diffusers are imported
only when something needs them.
"""

from autoguidance.data.encoders import Encoder, default_encoder, make_encoder
from autoguidance.data.open import open_data
from autoguidance.data.source import ArraySource, DataError, ImageSource, Problem, Survey

__all__ = [
    "ArraySource",
    "DataError",
    "Encoder",
    "ImageSource",
    "Problem",
    "Survey",
    "default_encoder",
    "make_encoder",
    "open_data",
]
