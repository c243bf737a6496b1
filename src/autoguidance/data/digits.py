"""The built-in set: scikit-learn's 1,797 handwritten digits, 8 x 8 grey, ten classes.

Values v in 0 .. 16 become round(v * 255 / 16).

Reference: Alpaydin & Kaynak 1998, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository.
"""

import numpy as np

from autoguidance.data.arrays import list_array
from autoguidance.data.listing import Listing


def list_digits(name: str) -> Listing:
    """The digits; class names "0" to "9". Nothing is downloaded: they come with scikit-learn."""
    from sklearn.datasets import load_digits

    values, labels = load_digits(return_X_y=True)
    images = np.rint(values.reshape(-1, 8, 8) * 255 / 16).astype(np.uint8)
    return list_array(name, images, np.asarray(labels, dtype=np.int64), class_names=tuple("0123456789"), kind="digits")
