"""The picture of `autoguidance diagnose`: each guide's figures over the noise level, one column per guide.

Two panels each. Above, on logarithmic axes, what the two models get wrong and how far apart they are, as losses (squared
errors times (sigma^2 + sigma_data^2) / (sigma sigma_data)^2, so that all noise levels can be seen at once). Below,
w*, at which the guided denoising error is least, with twice its standard error: above 1 the guide's errors are the
main model's, only stronger. The noise levels that decide the verdict are shaded.

The input is what `Diagnosis.to_dict` gives, and what lies in the file of --out: no model is needed to draw it again.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from autoguidance.errors import UserError
from autoguidance.storage import atomic_path

_INK, _MUTED = "#1c2430", "#5c6675"
_MAIN, _GUIDE, _DIFFERENCE, _EXCESS = "#5c6675", "#7a4fb5", "#c2410c", "#1f6fb5"
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.parse_math": False,  # names are shown as they are, dollar signs and all
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e3e7ed",
    "legend.frameon": False,
    "legend.fontsize": 9,
}
_CORE = "#fdf1e7"
_LONGEST_TITLE = 34
_WIDEST = (-1.0, 4.0)
_MOST_GUIDES = 12


def plot_diagnoses(diagnoses: Sequence[Mapping[str, Any]], path: Path | str) -> Path:
    """Draw diagnoses of one main model into a PNG file.

    Args:
        diagnoses: as `Diagnosis.to_dict` gives them, at least one.
        path: ends in .png.

    Returns: the path.
    Raises: UserError where the name has another ending, there are too many, or it cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise UserError(f"{path}: the picture is a PNG file; give a name that ends in .png")
    if not 1 <= len(diagnoses) <= _MOST_GUIDES:
        raise UserError(f"{len(diagnoses)} guides do not fit into one picture; draw 1 to {_MOST_GUIDES}")
    with rc_context(_STYLE):
        plot = Figure(figsize=(1.2 + 3.5 * len(diagnoses), 6.2), layout="constrained")
        axes = plot.subplots(2, len(diagnoses), sharex=True, sharey="row", squeeze=False)
        for column, diagnosis in enumerate(diagnoses):
            _draw_losses(axes[0, column], diagnosis)
            _draw_weights(axes[1, column], diagnosis)
        axes[0, 0].set_ylabel("loss (weighted squared error)")
        axes[1, 0].set_ylabel("w* (least denoising error)")
        # Where models agree nearly exactly V falls by many decades, which would squeeze everything else.
        top = max(max(_loss(d, "error_guide") + _loss(d, "error_main")) for d in diagnoses)
        axes[0, 0].set_ylim(1e-4 * top, 2 * top)
        handles, labels = axes[0, 0].get_legend_handles_labels()
        plot.legend(handles, labels, loc="outside upper left", ncols=4)
        with atomic_path(path) as temporary:
            plot.savefig(temporary, format="png", dpi=130, metadata={"Software": None})
    return path


def _loss(diagnosis: Mapping[str, Any], name: str) -> list[float]:
    sigma_data = diagnosis["protocol"]["sigma_data"]
    return [
        level[name] * (level["sigma"] ** 2 + sigma_data**2) / (level["sigma"] * sigma_data) ** 2
        for level in diagnosis["levels"]
    ]


def _sigmas(diagnosis: Mapping[str, Any]) -> list[float]:
    return [level["sigma"] for level in diagnosis["levels"]]


def _draw_losses(axes: Axes, diagnosis: Mapping[str, Any]) -> None:
    sigmas = _sigmas(diagnosis)
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):  # plain numbers: the usual powers of ten would need the math that is off
        axis.set_major_locator(LogLocator(numticks=6))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.axvspan(*diagnosis["core"], color=_CORE, linewidth=0)
    axes.plot(sigmas, _loss(diagnosis, "error_main"), color=_MAIN, marker="D", markersize=4, label="main's error")
    axes.plot(sigmas, _loss(diagnosis, "error_guide"), color=_GUIDE, marker="s", markersize=4, label="guide's error")
    axes.plot(sigmas, _loss(diagnosis, "difference"), color=_DIFFERENCE, marker="o", markersize=4, label="difference V")
    excess = np.array(_loss(diagnosis, "excess"))
    axes.plot(
        sigmas, np.where(excess > 0, excess, np.nan), color=_EXCESS, marker="^", markersize=4, label="excess error X"
    )
    name = str(diagnosis["guide"])
    short = name if len(name) <= _LONGEST_TITLE else f"…{name[1 - _LONGEST_TITLE :]}"
    axes.set_title(f"{short}\n{diagnosis['verdict']}", fontsize=10)


def _draw_weights(axes: Axes, diagnosis: Mapping[str, Any]) -> None:
    known = [level for level in diagnosis["levels"] if level["best_weight"] is not None]
    axes.axvspan(*diagnosis["core"], color=_CORE, linewidth=0)
    axes.axhline(1, color=_MUTED, linewidth=1, linestyle="--")
    axes.errorbar(
        [level["sigma"] for level in known],
        [level["best_weight"] for level in known],
        yerr=[2 * level["best_weight_se"] for level in known],
        color=_DIFFERENCE,
        marker="o",
        markersize=4,
        capsize=2,
    )
    axes.set_ylim(*_WIDEST)
    axes.set_xlabel("noise level σ")
