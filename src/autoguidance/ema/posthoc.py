"""Post-hoc EMA: any width of a power-function average, after training, from a few stored ones.

Each stored average is a known weighting (profile) of the whole training trajectory. The wanted profile is
approximated in the least squares sense by a linear combination of the stored profiles, and the same combination of
the stored weights is the reconstruction:

    <a, b> = (e_a + 1)(e_b + 1) (t_a / t_b)^q / ((e_a + e_b + 1) max(t_a, t_b)),  q = e_b if t_a < t_b else -e_a        (Eq. 151)
    A = <stored, stored>, B = <stored, wanted>, X = A^-1 B, columns divided by their sum                          (Algorithm 3)

Reference: Karras et al. 2024, arXiv 2312.02696, Section 3.2 and Appendix C.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from autoguidance.ema.power import std_to_exponent
from autoguidance.errors import UserError

Profile = tuple[int, float]
"""(end time t in images, relative width std)."""


def profile_products(a: Sequence[Profile], b: Sequence[Profile]) -> Float[np.ndarray, "A B"]:
    """Inner products of all pairs of profiles, in float64 (Eq. 151)."""
    t_a, e_a = _columns(a)
    t_b, e_b = _columns(b)
    t_a, e_a = t_a[:, None], e_a[:, None]
    ratio = t_a / t_b
    power = np.where(t_a < t_b, e_b, -e_a)
    return (e_a + 1) * (e_b + 1) * ratio**power / ((e_a + e_b + 1) * np.maximum(t_a, t_b))


def _columns(profiles: Sequence[Profile]) -> tuple[np.ndarray, np.ndarray]:
    times = np.array([time for time, _ in profiles], dtype=np.float64)
    return times, np.array([std_to_exponent(std) for _, std in profiles], dtype=np.float64)


def solve_coefficients(stored: Sequence[Profile], wanted: Sequence[Profile]) -> Float[np.ndarray, "stored wanted"]:
    """Weights of the stored averages for each wanted profile; every column sums to 1 (Algorithm 3).

    Raises: UserError where nothing is stored, or two stored profiles are the same.
    """
    if not stored:
        raise UserError("post-hoc EMA needs at least one stored snapshot; train longer or name another run")
    try:
        solution = np.linalg.solve(profile_products(stored, stored), profile_products(stored, wanted))
    except np.linalg.LinAlgError:
        raise UserError("the stored snapshots do not determine an average (duplicates?); remove the copies") from None
    return solution / solution.sum(axis=0)


def reconstruction_error(stored: Sequence[Profile], wanted: Profile) -> float:
    """Relative L2 distance between the wanted profile and the combination that stands for it: 0 is exact, 1 is nothing in common.

    This is an error of the weighting over time. What it means for the weights depends on how they moved; it says whether a width can be
    represented at all.
    """
    coefficients = solve_coefficients(stored, [wanted])[:, 0]
    cross = float(coefficients @ profile_products(stored, [wanted])[:, 0])
    own = float(profile_products([wanted], [wanted])[0, 0])
    square = float(coefficients @ profile_products(stored, stored) @ coefficients) - 2 * cross + own
    return float(np.sqrt(max(square, 0.0) / own))


def reconstruct(
    snapshots: Mapping[Profile, Callable[[], Mapping[str, Tensor]]],
    num_images: int,
    stds: Sequence[float],
    *,
    is_buffer: Callable[[str], bool] = lambda name: False,
    progress: Callable[[int, int, dict[str, object]], None] | None = None,
) -> dict[float, dict[str, Tensor]]:
    """Weights at training time num_images averaged with the widths stds, in float32.

    Reads one snapshot at a time: memory is (number of widths + 1) networks.

    Args:
        snapshots: for each stored profile (images, std) a function that loads its state dict.
        num_images: end of the wanted profile; must be a stored time.
        stds: wanted relative widths.
        is_buffer: which names are copied from the snapshot at num_images and not averaged.
        progress: called with (done, total, figures).

    Raises: UserError where num_images is not a stored time.
    """
    times = sorted({time for time, _ in snapshots})
    if num_images not in times:
        known = ", ".join(str(int(time)) for time in times)
        raise UserError(f"no snapshot at {num_images} images; post-hoc EMA ends at a stored time: {known}")
    stored = sorted(profile for profile in snapshots if 0 < profile[0] <= num_images)
    coefficients = solve_coefficients(stored, [(num_images, std) for std in stds])
    outputs: dict[float, dict[str, Tensor]] = {std: {} for std in stds}
    for index, profile in enumerate(stored):
        for name, value in snapshots[profile]().items():
            if not value.is_floating_point() or is_buffer(name):
                if profile[0] == num_images:
                    for output in outputs.values():
                        output[name] = value.clone()
                continue
            value = value.float()
            for column, output in enumerate(outputs.values()):
                weight = float(coefficients[index, column])
                if name in output:
                    output[name].add_(value, alpha=weight)
                else:
                    output[name] = value * weight
        if progress is not None:
            progress(index + 1, len(stored), {})
    if not all(bool(torch.isfinite(value).all()) for output in outputs.values() for value in output.values()):
        raise UserError("the reconstruction is not finite; a stored snapshot is damaged")
    return outputs
