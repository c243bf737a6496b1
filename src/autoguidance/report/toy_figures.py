"""The toy's pictures: what each way of sampling does (Figure 1), why (Figure 2), and at which noise levels (Figure
9).

Problem: the same pictures must be readable on a page and on a projector, and show outliers of a few per mille. Light
areas hold 99 % of a true density's mass: grey for classes A and B together, orange for A alone; dots are samples.
Dots and density images are bitmaps inside the SVG; text and contours stay lines.

Notation: p(x; sigma) is the true density, p1 the main model's implied density exp(G), p0 its guide's; both are
unnormalized, so an image shows a density relative to its largest value in view.

Reference: Karras et al. 2024, "Guiding a Diffusion Model with a Bad Version of Itself", arXiv 2406.02507, Figures 1,
2 and 9.
"""

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Float
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, PathPatch, Rectangle
from torch import Tensor

from autoguidance.models.toy import ToyNetwork
from autoguidance.models.toy_mixture import toy_mixture
from autoguidance.storage import atomic_path

INK, MUTED = "#1c2430", "#5c6675"
LINE = {"A": "#d9730d", "AB": "#9aa1ab"}
FILL = {"A": "#fcdcb6", "AB": "#e6e8ec"}
PATH_COLOUR = "#1f6fb5"
_DENSITY = LinearSegmentedColormap.from_list("density", ["#ffffff", "#fde3c4", "#f6ab5f", "#d9730d", "#7c3a02"])
_RATIO = LinearSegmentedColormap.from_list("ratio", ["#2563a8", "#9cc3e8", "#ffffff", "#f6bd84", "#c2560a"])
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.edgecolor": "#b4bac3",
    "axes.linewidth": 0.8,
    "text.color": INK,
    "axes.labelcolor": INK,
    "svg.fonttype": "none",
    "svg.hashsalt": "autoguidance",  # the same figure gives the same file
}

PANEL_TITLES = {
    "truth": "(a) Ground truth",
    "none": "(b) No guidance",
    "cfg": "(c) Classifier-free guidance",
    "truncation": "(d) Naive truncation",
    "autoguidance": "(e) Autoguidance",
}
PANEL_VIEW = ((0.40, 0.42), 1.16)
CLOSEUP_CENTER, CLOSEUP_RADIUS, CLOSEUP_SIGMA = (0.45, 1.22), 0.3, 0.03
DENSITY_SIGMAS = (0.5, 0.25, 0.08, 0.03, 0.01)
NUM_DOTS = 8192
NUM_TRAJECTORIES = 40
NUM_ARROWS = 15
RATIO_SPAN = 3.0  # nats


class _Models(Protocol):
    @property
    def main(self) -> ToyNetwork: ...
    @property
    def bad(self) -> ToyNetwork: ...
    @property
    def unconditional(self) -> ToyNetwork: ...


class View(NamedTuple):
    """A square of the plane and the pixels that it is computed on."""

    center: tuple[float, float]
    radius: float
    num_pixels: int

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """left, right, bottom, top, as matplotlib takes them."""
        (x, y), r = self.center, self.radius
        return x - r, x + r, y - r, y + r

    def visible(self) -> "View":
        """Without the outermost pixels, where contours are closed."""
        return self._replace(radius=self.radius * (1 - 3 / self.num_pixels))

    def axes(self) -> tuple[np.ndarray, np.ndarray]:
        """x and y of the pixels' centres."""
        steps = ((np.arange(self.num_pixels) + 0.5) / self.num_pixels * 2 - 1) * self.radius
        return self.center[0] + steps, self.center[1] + steps

    def points(self) -> Float[Tensor, "num_pixels**2 2"]:
        """The pixels' centres, row by row from the bottom, float32."""
        columns, rows = np.meshgrid(*self.axes())
        return torch.from_numpy(np.stack([columns.ravel(), rows.ravel()], axis=1)).float()

    def image(self, values: Float[Tensor, "num_pixels**2"]) -> np.ndarray:
        """Values at `points()` as an image whose first row is the bottom."""
        return values.detach().reshape(self.num_pixels, self.num_pixels).double().numpy()


class TrueDensity:
    """The truth of one class (or "AB") in one view: its log-density as an image, and the contour that holds 99 % of its mass."""

    def __init__(self, view: View, classes: str, sigma: float) -> None:
        mixture = toy_mixture(classes)
        self.classes = classes
        self.image = view.image(mixture.log_density(view.points(), sigma))
        draws = mixture.sample(16384, torch.Generator().manual_seed(0), sigma)
        self.level = float(mixture.log_density(draws, sigma).quantile(0.01))
        # Far from the tree the log-density falls without bound; the contour does not need to know how far.
        # A margin below the level closes contours that leave the view, just outside of what `_frame` shows.
        bounded = np.pad(np.maximum(self.image, self.level - 20)[1:-1, 1:-1], 1, constant_values=self.level - 20)
        (self._path,) = Figure().subplots().contour(*view.axes(), bounded, levels=[self.level]).get_paths()

    def draw(self, axes: Axes, *, filled: bool = True, width: float = 0.7) -> None:
        """The contour into axes; filled areas cover what was drawn before."""
        colour = FILL[self.classes] if filled else "none"
        axes.add_patch(PathPatch(self._path, facecolor=colour, edgecolor=LINE[self.classes], linewidth=width))


def _true_densities(*wanted: tuple[View, str, float]) -> list[TrueDensity]:
    """Several of them, computed side by side: drawing spends most of its time here."""
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as executor:
        return list(executor.map(lambda arguments: TrueDensity(*arguments), wanted))


def _frame(axes: Axes, view: View, title: str = "", label: str = "") -> None:
    left, right, bottom, top = view.visible().extent
    axes.set(xlim=(left, right), ylim=(bottom, top), aspect="equal", xticks=[], yticks=[])
    axes.set_title(title, pad=6)
    axes.set_ylabel(label, labelpad=8)


def _show_density(axes: Axes, view: View, log_density: np.ndarray, truth: TrueDensity) -> None:
    # Relative to nearly the largest value on the tree, because a bad model may have a narrow peak anywhere.
    # The square root shows faint bridges between branches, which are what guidance is about.
    largest = np.quantile(log_density[truth.image >= truth.level], 0.99)
    relative = np.exp(np.minimum(0.5 * (log_density - largest), 0))
    axes.imshow(relative, extent=view.extent, origin="lower", cmap=_DENSITY, vmin=0, vmax=1, interpolation="bilinear")


def _show_ratio(axes: Axes, view: View, main: np.ndarray, guide: np.ndarray, truth: TrueDensity) -> None:
    # Both are unnormalized: zero is the median over the area that holds 99 % of the truth.
    ratio = main - guide
    ratio = ratio - np.median(ratio[truth.image >= truth.level])
    span = RATIO_SPAN
    axes.imshow(ratio, extent=view.extent, origin="lower", cmap=_RATIO, vmin=-span, vmax=span, interpolation="bilinear")


def _implied(network: ToyNetwork, view: View, sigma: float) -> np.ndarray:
    with torch.no_grad():
        return view.image(network.log_density(view.points(), sigma))


def figure_panels(samples: Mapping[str, Float[Tensor, "N 2"]], panels: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Figure 1: the samples of each panel over the areas that hold 99 % of the truth.

    Args:
        samples: points per panel, by the names of `PANEL_TITLES`; the first 8192 are drawn.
        panels: the measured "outside_99" and "coverage" of each panel, written below it.
    """
    view = View(*PANEL_VIEW, 440)
    both, single = _true_densities((view, "AB", 0.0), (view, "A", 0.0))
    figure = Figure(figsize=(20, 5.1), layout="constrained")
    for axes, (name, title) in zip(np.ravel(figure.subplots(1, len(PANEL_TITLES))), PANEL_TITLES.items(), strict=True):
        both.draw(axes)
        single.draw(axes)
        points = samples[name][:NUM_DOTS].numpy()
        axes.scatter(points[:, 0], points[:, 1], s=1.1, color=INK, linewidths=0, rasterized=True, zorder=3)
        _frame(axes, view, title)
        measured = panels[name]
        axes.set_xlabel(f"outside {measured['outside_99']:.1%}   covered {measured['coverage']:.1%}", labelpad=6)
        (x, y), r = CLOSEUP_CENTER, CLOSEUP_RADIUS
        axes.add_patch(Rectangle((x - r, y - r), 2 * r, 2 * r, fill=False, edgecolor=MUTED, linewidth=0.8, zorder=4))
    handles = [
        Patch(facecolor=FILL["A"], edgecolor=LINE["A"], label="class A, 99 % of its mass"),
        Patch(facecolor=FILL["AB"], edgecolor=LINE["AB"], label="classes A and B"),
        Line2D([], [], linestyle="none", marker="o", markersize=3, color=INK, label="sample"),
        Patch(facecolor="none", edgecolor=MUTED, label="close-up of Figure 2"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    return figure


def _show_paths(axes: Axes, view: View, path: Float[Tensor, "T N 2"]) -> None:
    """Those of the paths that end in view, in full, with a dot at their ends."""
    left, right, bottom, top = view.extent
    x, y = path[-1].unbind(1)
    ends_here = ((x > left) & (x < right) & (y > bottom) & (y < top)).nonzero()[:NUM_TRAJECTORIES, 0]
    for index in ends_here.tolist():
        line = path[:, index].numpy()
        axes.plot(line[:, 0], line[:, 1], color=PATH_COLOUR, linewidth=0.8, alpha=0.65, zorder=3)
    ends = path[-1, ends_here].numpy()
    axes.scatter(ends[:, 0], ends[:, 1], s=11, color=INK, linewidths=0, zorder=4)


def figure_closeup(models: _Models, paths: Mapping[str, Float[Tensor, "T N 2"]]) -> Figure:
    """Figure 2: a few branches at sigma = 0.03, for classifier-free guidance (above) and autoguidance (below).

    Columns: implied density of the main model and of the guide; their log-ratio, whose gradient (arrows: the difference of the scores)
    is the direction in which guidance pushes; sampling trajectories that end in view, over the areas of the noise-free truth.

    Args:
        models: the three networks.
        paths: points at every step, for "none", "cfg" and "autoguidance".
    """
    view = View(CLOSEUP_CENTER, CLOSEUP_RADIUS, 240)
    noisy, clean = _true_densities((view, "A", CLOSEUP_SIGMA), (view, "A", 0.0))
    rows = {
        "cfg": ("Classifier-free guidance", models.unconditional, "guide, A + B"),
        "autoguidance": ("Autoguidance", models.bad, "bad version, A"),
    }
    figure = Figure(figsize=(18.5, 8), layout="constrained")
    grid = figure.subplots(len(rows), 5, squeeze=False)
    coarse = View(CLOSEUP_CENTER, CLOSEUP_RADIUS, NUM_ARROWS)
    for row, (name, (label, guide, guide_title)) in zip(grid, rows.items(), strict=True):
        densities = [_implied(network, view, CLOSEUP_SIGMA) for network in (models.main, guide)]
        for axes, density, title in zip(row, densities, (r"$p_1$: main, A", rf"$p_0$: {guide_title}"), strict=False):
            _show_density(axes, view, density, noisy)
            noisy.draw(axes, filled=False)
            _frame(axes, view, title)
        row[0].set_ylabel(label, labelpad=8)

        _show_ratio(row[2], view, densities[0], densities[1], noisy)
        points = coarse.points()
        with torch.no_grad():
            push = models.main.score(points, CLOSEUP_SIGMA) - guide.score(points, CLOSEUP_SIGMA)
        # Lengths are compressed, because the push grows without bound away from the tree.
        norm = push.norm(dim=1, keepdim=True)
        arrows = (push / norm * norm.sqrt() / norm.sqrt().max()).numpy()
        row[2].quiver(*points.numpy().T, *arrows.T, color=INK, scale=12, width=0.0045, zorder=3)
        noisy.draw(row[2], filled=False)
        _frame(row[2], view, r"$\log\,p_1/p_0$ and its gradient")
        for axes, method, title in zip(row[3:], ("none", name), ("No guidance", label), strict=True):
            clean.draw(axes)
            _show_paths(axes, view, paths[method])
            _frame(axes, view, f"Trajectories: {title[0].lower()}{title[1:]}")
    return figure


def figure_densities(models: _Models) -> Figure:
    """Figure 9: the densities at five noise levels: the truth, the main model, its bad version, and the log-ratio of the two.

    Guidance follows the gradient of the ratio: towards orange, away from blue.
    """
    view = View(*PANEL_VIEW, 220)
    labels = ("Truth, A", "Main, $p_1$", "Bad version, $p_0$", r"$\log\,p_1/p_0$")
    truths = _true_densities(*((view, "A", sigma) for sigma in DENSITY_SIGMAS))
    figure = Figure(figsize=(16, 13), layout="constrained")
    grid = figure.subplots(len(labels), len(DENSITY_SIGMAS), squeeze=False)
    for column, (sigma, truth) in enumerate(zip(DENSITY_SIGMAS, truths, strict=True)):
        main, bad = (_implied(network, view, sigma) for network in (models.main, models.bad))
        for row, image in enumerate((truth.image, main, bad)):
            _show_density(grid[row, column], view, image, truth)
        _show_ratio(grid[-1, column], view, main, bad, truth)
        for row, (axes, label) in enumerate(zip(grid[:, column], labels, strict=True)):
            truth.draw(axes, filled=False, width=0.6)
            _frame(axes, view, rf"$\sigma = {sigma:g}$" if row == 0 else "", label if column == 0 else "")
    return figure


def save_figure(figure: Figure, stem: Path) -> list[Path]:
    """Write `stem`.png and `stem`.svg; a reader never sees half a file."""
    written = []
    for suffix, dpi, metadata in (("png", 150, {"Software": None}), ("svg", 100, {"Date": None})):
        path = stem.with_name(f"{stem.name}.{suffix}")
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format=suffix, dpi=dpi, facecolor="white", metadata=metadata)
        written.append(path)
    return written


def draw_figures(
    out: Path,
    models: _Models,
    samples: Mapping[str, Float[Tensor, "N 2"]],
    panels: Mapping[str, Mapping[str, Any]],
    paths: Mapping[str, Float[Tensor, "T N 2"]],
) -> list[str]:
    """Draw Figures 1, 2 and 9 into a folder.

    Args:
        out: the folder.
        models: the three networks.
        samples: points per panel.
        panels: what was measured on them.
        paths: points at every sampling step of the generated panels.

    Returns: the files' names.
    """
    written: list[Path] = []
    with rc_context(_STYLE):
        written += save_figure(figure_panels(samples, panels), out / "figure1-panels")
        written += save_figure(figure_closeup(models, paths), out / "figure2-closeup")
        written += save_figure(figure_densities(models), out / "figure9-densities")
    return [path.name for path in written]
