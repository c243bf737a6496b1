"""Make data/inception.npz: what torch-fidelity's Inception-v3 computes with weights and images that anybody can make.

    python -m venv /tmp/venv-fid && /tmp/venv-fid/bin/pip install torch numpy pillow tqdm scipy
    /tmp/venv-fid/bin/pip install --no-deps torch-fidelity==0.4.0
    PYTHONPATH=tests/support /tmp/venv-fid/bin/python tests/numerics/make_inception_golden.py

torchvision, which torch-fidelity imports and this does not use, is replaced by an empty module: its builds do not fit
every build of torch.
"""

import importlib.metadata
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from random_weights import IMAGE_SHAPES, layout_sha256, random_arrays, random_image

TARGET = Path(__file__).parent / "data" / "inception.npz"


class _Anything(ModuleType):
    __path__ = ()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def second_implementation() -> Any:
    """torch-fidelity's feature extractor with the random weights."""
    for name in ("", ".transforms", ".transforms.functional", ".datasets", ".models"):
        parent, _, child = f"torchvision{name}".rpartition(".")
        sys.modules[f"torchvision{name}"] = module = _Anything(f"torchvision{name}")
        if parent:
            setattr(sys.modules[parent], child, module)
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class WithoutFile(FeatureExtractorInceptionV3):
        def load_state_dict(self, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
            shapes = {name: tuple(tensor.shape) for name, tensor in self.state_dict().items()}
            arrays = random_arrays(shapes)
            return super().load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})

    with tempfile.TemporaryDirectory() as folder:
        empty = Path(folder) / "empty.pth"
        torch.save({}, empty)
        return WithoutFile("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(empty))


def main() -> None:
    network = second_implementation()
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

    features, resized = [], []
    for shape in IMAGE_SHAPES:
        image = torch.from_numpy(random_image(shape)).expand(3, -1, -1)[None].contiguous()
        with torch.no_grad():
            features.append(network(image)[0][0].numpy())
        whole = interpolate_bilinear_2d_like_tensorflow1x(image.float(), size=(299, 299), align_corners=False)
        resized.append(whole[0, :, ::23, ::23].numpy())
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    TARGET.parent.mkdir(exist_ok=True)
    np.savez_compressed(
        TARGET,
        features=np.stack(features),
        resized=np.stack(resized),
        layout=np.array(layout_sha256(shapes)),
        num_entries=np.int64(len(shapes)),
        made_by=np.array(f"torch-fidelity {importlib.metadata.version('torch-fidelity')}, torch {torch.__version__}"),
    )


if __name__ == "__main__":
    main()
