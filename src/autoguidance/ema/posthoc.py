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
from jaxtyping import Float
from torch import Tensor

from autoguidance.ema.power import std_to_exponent
from autoguidance.ema.sums import WeightedSums
from autoguidance.errors import UserError

Profile = tuple[int, float]
"""(end time t in images, relative width std)."""

MAX_PROFILE_ERROR = 0.15
"""Largest `reconstruction_error` of a width that is called representable.

Why there (stored widths 0.05 and 0.10 at n equal steps of time): below an error of 0.1 `combined_widths` is within 10 % of
the wanted width, and beyond 0.15 it falls apart: with error 0.12 (0.020, n = 16) it is 0.0185, with 0.16 (0.025, n = 8)
0.011, and with 0.20 (0.025, n = 6) the combination has a negative variance, that is, it extrapolates.
"""


class ReconstructionWarning(UserWarning):
    """A post-hoc average was asked for at a width that its stored snapshots cannot represent."""


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


def reconstruction_errors(
    stored: Sequence[Profile], wanted: Sequence[Profile], coefficients: Float[np.ndarray, "stored wanted"] | None = None
) -> Float[np.ndarray, "wanted"]:
    """Relative L2 distance between each wanted profile and the combination that stands for it: 0 is exact, 1 is nothing in common.

    This is an error of the weighting over time. What it means for the weights depends on how they moved; it says whether a width can be
    represented at all.

    Args:
        stored, wanted: profiles.
        coefficients: the combination; None: that of `solve_coefficients`.
    """
    X = solve_coefficients(stored, wanted) if coefficients is None else coefficients
    cross = (X * profile_products(stored, wanted)).sum(axis=0)
    square = (X * (profile_products(stored, stored) @ X)).sum(axis=0)
    own = np.array([profile_products([profile], [profile])[0, 0] for profile in wanted])
    return np.sqrt(np.maximum(square - 2 * cross + own, 0.0) / own)


def reconstruction_error(stored: Sequence[Profile], wanted: Profile) -> float:
    """`reconstruction_errors` of one profile."""
    return float(reconstruction_errors(stored, [wanted])[0])


def combined_widths(
    stored: Sequence[Profile], num_images: int, coefficients: Float[np.ndarray, "stored wanted"]
) -> Float[np.ndarray, "wanted"]:
    """Relative width that each combination of profiles really has; NaN where its variance is negative (it extrapolates).

    From the moments of a profile, E[tau] = t (e + 1) / (e + 2) and E[tau^2] = t^2 (e + 1) / (e + 3), in units of num_images.
    """
    times, exponents = _columns(stored)
    times = times / num_images
    mean = (times * (exponents + 1) / (exponents + 2)) @ coefficients
    square = (times**2 * (exponents + 1) / (exponents + 3)) @ coefficients
    variance = square - mean**2
    return np.where(variance > 0, np.sqrt(np.maximum(variance, 0.0)), np.nan)


def usable_profiles(profiles: Sequence[Profile], num_images: int) -> list[Profile]:
    """The profiles from which an average at num_images can be made, sorted: those with 0 < t <= num_images.

    Raises: UserError where num_images is not a stored time.
    """
    times = sorted({time for time, _ in profiles})
    if num_images not in times:
        known = ", ".join(str(int(time)) for time in times)
        raise UserError(f"no snapshot at {num_images} images; post-hoc EMA ends at a stored time: {known}")
    return sorted(profile for profile in profiles if 0 < profile[0] <= num_images)


def reconstruct(
    snapshots: Mapping[Profile, Callable[[], Mapping[str, Tensor]]],
    num_images: int,
    stds: Sequence[float],
    *,
    is_buffer: Callable[[str], bool] = lambda name: False,
    progress: Callable[[int, int, dict[str, object]], None] | None = None,
) -> dict[float, dict[str, Tensor]]:
    """Weights at training time num_images averaged with the widths stds, in float32.

    Reads the snapshots of one time after those of another, tensor by tensor: memory is one network per width, and what the returned
    mappings of one time hold.

    Args:
        snapshots: for each stored profile (images, std) a function that loads its state dict; a lazy mapping will do.
        num_images: end of the wanted profile; must be a stored time.
        stds: wanted relative widths.
        is_buffer: which names are copied from the snapshot at num_images and not averaged.
        progress: called with (snapshots read, snapshots, {}).

    Raises: UserError where num_images is not a stored time, or the snapshots are not of one network or not finite.
    """
    stored = usable_profiles(list(snapshots), num_images)
    coefficients = solve_coefficients(stored, [(num_images, std) for std in stds])
    sums = WeightedSums(len(stds))
    for rows in groups_by_time(stored):
        group = stored[rows]
        sums.add(
            [snapshots[profile]() for profile in group],
            coefficients[rows],
            labels=[f"the snapshot of width {std:.3f} at {int(time)} images" for time, std in group],
            is_buffer=is_buffer,
        )
        if progress is not None:
            progress(rows.stop, len(stored), {})
    return {std: sums.output(index) for index, std in enumerate(stds)}


def groups_by_time(profiles: Sequence[Profile]) -> list[slice]:
    """Runs of equal time in sorted profiles, as slices."""
    starts = [i for i, (time, _) in enumerate(profiles) if i == 0 or time != profiles[i - 1][0]]
    return [slice(start, stop) for start, stop in zip(starts, [*starts[1:], len(profiles)], strict=True)]
