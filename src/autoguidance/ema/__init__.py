"""Power-function averages of weights, and their reconstruction after training."""

from autoguidance.ema.posthoc import (
    MAX_PROFILE_ERROR,
    Profile,
    ReconstructionWarning,
    combined_widths,
    groups_by_time,
    profile_products,
    reconstruct,
    reconstruction_error,
    reconstruction_errors,
    solve_coefficients,
    usable_profiles,
)
from autoguidance.ema.power import MAX_EMA_STD, PowerEMA, exponent_to_std, power_ema_beta, std_to_exponent
from autoguidance.ema.snapshots import parse_snapshot_name, snapshot_name
from autoguidance.ema.sums import WeightedSums

__all__ = [
    "MAX_EMA_STD",
    "MAX_PROFILE_ERROR",
    "PowerEMA",
    "Profile",
    "ReconstructionWarning",
    "WeightedSums",
    "combined_widths",
    "exponent_to_std",
    "groups_by_time",
    "parse_snapshot_name",
    "power_ema_beta",
    "profile_products",
    "reconstruct",
    "reconstruction_error",
    "reconstruction_errors",
    "snapshot_name",
    "solve_coefficients",
    "std_to_exponent",
    "usable_profiles",
]
