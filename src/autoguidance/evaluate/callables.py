"""Any function as a feature network: what it must keep is tried out once, before anything is measured with it.

Problem: a function of the user's own promises nothing. It may return another shape than expected, be left in training
mode (dropout makes every call differ, batch norm makes an image's features depend on its neighbours), or hold weights
that nothing identifies, so that two results look comparable that are not.

    function: uint8 images [N, 3, H, W] -> features [N, d] (or [N, d, 1, 1]), any float type

Images are given as they are: RGB (grey repeated), any size, values 0 to 255, on the device of the run; resizing and
normalization are the function's own.

On creation the function is called with seeded noise images: the shape gives d, NaN is refused, and an image must get
the same features in another place beside other neighbours.

What names it (`sha256`), in this order:

1. the hash given by the caller, or the function's own attribute `sha256`: as exact as whoever gave it made it;
2. else SHA-256 of: the source file that it is written in; for a `torch.nn.Module` its parameters and buffers, exactly;
   and the norms of the features of the noise images, to three digits.

The source alone would not see weights that the function loads from elsewhere, the features alone would differ in their
last digits from machine to machine; three digits see any weights that are really others. So the second kind is an
identification, not a proof: two sets of weights that agree on four images to 0.1 % pass for one. Give a hash where
that can happen.
"""

import functools
import hashlib
import importlib
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from autoguidance.errors import UserError
from autoguidance.evaluate.running import rgb_images, true_float32
from autoguidance.evaluate.weights import weights_sha256

_NUM_PROBES = 4
_TOLERANCE = 1e-3  # relative to the largest feature; kernels for other places in a batch differ by 1e-6


class CallableFeatures:
    """A function of the user's as feature network.

    Args:
        function: see the module.
        name: for tables and results.
        sha256: 64 hexadecimal digits that name weights and preprocessing; None: as the module says.
        resolution: H = W of the images that it is tried with, in pixels; give that of the images to come.
        resize: how the function resizes, for the protocol; None: its attribute `resize`, or "none".
        device: where the images are put. The function itself is not moved.

    Attributes:
        name, sha256, resize: as given or found.
        num_features: d, as tried.

    Raises:
        UserError: the function fails, returns something else than features, is in training mode or otherwise gives an
            image other features beside other images; no hash can be had, or the one given is none.
    """

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        *,
        name: str,
        sha256: str | None = None,
        resolution: int = 64,
        resize: str | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.name = name
        self.resize = str(resize if resize is not None else getattr(function, "resize", "none"))
        self.device = torch.device(device)
        self._function = function
        self.num_features = 0  # not known yet
        if isinstance(function, nn.Module) and function.training:
            raise UserError(f"features {name!r}: the network is in training mode; call its eval() first")
        probes = self._try(resolution)
        self.num_features = probes.shape[1]
        given = sha256 if sha256 is not None else getattr(function, "sha256", None)
        self.sha256 = _checked_hash(given, name) if given is not None else _identity(function, name, probes)

    def _try(self, resolution: int) -> Float[Tensor, "4 d"]:
        generator = torch.Generator().manual_seed(0)
        size = (_NUM_PROBES, 3, resolution, resolution)
        images = torch.randint(0, 256, size, generator=generator, dtype=torch.uint8)
        try:
            features = self(images)
            again = self(images[[3, 0, 0, 0]])
        except UserError:
            raise
        except Exception as error:  # whatever a stranger's function raises
            reason = next(iter(str(error).splitlines()), "") or type(error).__name__
            raise UserError(
                f"features {self.name!r} fail on uint8 images [{', '.join(map(str, size))}]: {reason[:200]}"
            ) from error
        if not torch.isfinite(features).all():
            raise UserError(f"features {self.name!r}: NaN or infinity for noise images; check the network's weights")
        difference = (again - features[[3, 0, 0, 0]]).abs().max()
        if difference > _TOLERANCE * features.abs().max():
            raise UserError(
                f"features {self.name!r} of one image differ by {difference:.3g} between two calls or beside other "
                "images; switch off dropout and batch statistics (eval mode)"
            )
        return features

    def __call__(self, images: UInt8[Tensor, "N C H W"]) -> Float[Tensor, "N d"]:
        images = rgb_images(images, f"the feature network '{self.name}'").to(self.device)
        with true_float32(self.device):
            found: Any = self._function(images.contiguous())
        if not isinstance(found, Tensor) or not found.is_floating_point():
            kind = found.dtype if isinstance(found, Tensor) else type(found).__name__
            raise UserError(f"features {self.name!r}: the network returns {kind}, not a tensor of floats [N, d]")
        features = found.flatten(1) if found.ndim == 4 and tuple(found.shape[2:]) == (1, 1) else found
        wanted = self.num_features or features.shape[-1]
        if features.ndim != 2 or tuple(features.shape) != (len(images), wanted) or wanted < 1:
            raise UserError(
                f"features {self.name!r}: the network returns {list(found.shape)} for {len(images)} images, not "
                f"[{len(images)}, {self.num_features or 'd'}]"
            )
        return features.float()


def _checked_hash(text: Any, name: str) -> str:
    if not isinstance(text, str) or not re.fullmatch("[0-9a-f]{64}", text):
        raise UserError(f"features {name!r}: the hash {str(text)[:80]!r} is not 64 hexadecimal digits (lower case)")
    return text


def _identity(function: Any, name: str, probes: Float[Tensor, "4 d"]) -> str:
    target = function
    while isinstance(target, functools.partial):
        target = target.func
    target = inspect.unwrap(target)
    if not (inspect.isroutine(target) or inspect.isclass(target)):
        target = type(target)
    try:
        source = hashlib.sha256(Path(inspect.getfile(target)).read_bytes()).hexdigest()
    except (TypeError, OSError):
        raise UserError(
            f"features {name!r}: its source file cannot be found, so nothing would identify it; give sha256 (64 "
            "hexadecimal digits), as an argument or as the function's attribute"
        ) from None
    norms = [f"{value:.2e}" for value in probes.double().norm(dim=1).tolist()]
    weights = function.state_dict() if isinstance(function, nn.Module) else {}
    description = {"kind": "callable", "version": 1, "function": target.__qualname__, "source": source, "norms": norms}
    return weights_sha256(weights, description)


def load_callable(where: str, *, resolution: int, device: torch.device | str = "cpu") -> CallableFeatures:
    """Import a function that the user wrote and named; this runs its module.

    Args:
        where: "package.module:attribute"; the package must be found by Python (installed, or on PYTHONPATH).
        resolution: of the images to come.
        device: where the images are put.

    Raises:
        UserError: no such module or attribute, it cannot be called, or what `CallableFeatures` raises.
    """
    module_name, _, attribute = where.partition(":")
    if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", module_name) or not attribute.isidentifier():
        raise UserError(f"features 'callable:{where}': write callable:package.module:attribute")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UserError(
            f"features 'callable:{where}': {error}; put the folder that holds {module_name.partition('.')[0]} on PYTHONPATH"
        ) from None
    except Exception as error:  # the module's own
        raise UserError(f"features 'callable:{where}': its module fails: {type(error).__name__}: {error}") from error
    function = getattr(module, attribute, None)
    if function is None:
        raise UserError(f"features 'callable:{where}': the module {module_name} has no {attribute}")
    if inspect.isclass(function) or not callable(function):
        raise UserError(
            f"features 'callable:{where}': {attribute} is {'a class' if inspect.isclass(function) else 'no function'}; "
            "name a function, or an object that can be called with images"
        )
    named: Any = function
    return CallableFeatures(named, name=f"callable:{where}", resolution=resolution, device=device)
