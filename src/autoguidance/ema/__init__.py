"""Power-function averages of weights, and their reconstruction after training."""

from autoguidance.ema.posthoc import profile_products, reconstruct, reconstruction_error, solve_coefficients
from autoguidance.ema.power import MAX_EMA_STD, PowerEMA, exponent_to_std, power_ema_beta, std_to_exponent
from autoguidance.ema.snapshots import parse_snapshot_name, snapshot_name

__all__ = [
    "MAX_EMA_STD",
    "PowerEMA",
    "exponent_to_std",
    "parse_snapshot_name",
    "power_ema_beta",
    "profile_products",
    "reconstruct",
    "reconstruction_error",
    "snapshot_name",
    "solve_coefficients",
    "std_to_exponent",
]
