"""A feature network as a user would write it: the mean of each row of the image."""

import torch
from torch import Tensor


def features(images: Tensor) -> Tensor:
    """uint8 [N, C, H, W] to float32 [N, H]."""
    return images.to(torch.float32).mean(dim=(1, 3)) / 255
