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

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Float
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
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
    """The truth in one view: log-densities of "A" and "AB" as images, and the levels whose contours hold 99 % of the mass."""

    def __init__(self, view: View, sigma: float) -> None:
        self.view = view
        self.log_density: dict[str, np.ndarray] = {}
        self.level: dict[str, float] = {}
        for name in ("A", "AB"):
            mixture = toy_mixture(name)
            self.log_density[name] = view.image(mixture.log_density(view.points(), sigma))
            draws = mixture.sample(16384, torch.Generator().manual_seed(0), sigma)
            self.level[name] = float(mixture.log_density(draws, sigma).quantile(0.01))

    def draw(self, axes: Axes, *, names: tuple[str, ...] = ("AB", "A"), filled: bool = True, width: float = 0.7) -> None:
        """Contours into axes, the last name on top."""
        x, y = self.view.axes()
        for layer, name in enumerate(names):
            image, level = self.log_density[name], self.level[name]
            if filled:
                axes.contourf(x, y, image, levels=[level, np.inf], colors=[FILL[name]], zorder=layer)
            axes.contour(x, y, image, levels=[level], colors=[LINE[name]], linewidths=width, zorder=layer + 0.5)


def _frame(axes: Axes, view: View, title: str = "", label: str = "") -> None:
    left, right, bottom, top = view.extent
    axes.set(xlim=(left, right), ylim=(bottom, top), aspect="equal", xticks=[], yticks=[])
    axes.set_title(title, pad=6)
    axes.set_ylabel(label, labelpad=8)


def _show_density(axes: Axes, view: View, log_density: np.ndarray) -> None:
    # The square root shows faint bridges between branches, which are what guidance is about.
    relative = np.exp(0.5 * (log_density - log_density.max()))
    axes.imshow(relative, extent=view.extent, origin="lower", cmap=_DENSITY, vmin=0, vmax=1, interpolation="bilinear")


def _implied(network: ToyNetwork, view: View, sigma: float) -> np.ndarray:
    with torch.no_grad():
        return view.image(network.log_density(view.points(), sigma))


def figure_panels(samples: Mapping[str, Float[Tensor, "N 2"]]) -> Figure:
    """Figure 1: the samples of each panel (by the names of `PANEL_TITLES`) over the areas that hold 99 % of the truth."""
    view = View(*PANEL_VIEW, 900)
    truth = TrueDensity(view, 0.0)
    figure = Figure(figsize=(20, 4.4), layout="constrained")
    for axes, (name, title) in zip(np.ravel(figure.subplots(1, len(PANEL_TITLES))), PANEL_TITLES.items(), strict=True):
        truth.draw(axes)
        points = samples[name][:NUM_DOTS].numpy()
        axes.scatter(points[:, 0], points[:, 1], s=1.1, color=INK, linewidths=0, rasterized=True, zorder=3)
        _frame(axes, view, title)
        (x, y), r = CLOSEUP_CENTER, CLOSEUP_RADIUS
        axes.add_patch(Rectangle((x - r, y - r), 2 * r, 2 * r, fill=False, edgecolor=MUTED, linewidth=0.8, zorder=4))
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
    view = View(CLOSEUP_CENTER, CLOSEUP_RADIUS, 300)
    noisy, clean = TrueDensity(view, CLOSEUP_SIGMA), TrueDensity(view, 0.0)
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
            _show_density(axes, view, density)
            noisy.draw(axes, names=("AB", "A") if guide is models.unconditional else ("A",), filled=False)
            _frame(axes, view, title)
        row[0].set_ylabel(label, labelpad=8)

        ratio = densities[0] - densities[1]
        ratio = ratio - np.median(ratio[noisy.log_density["A"] > noisy.level["A"]])
        span = float(np.abs(np.quantile(ratio, [0.02, 0.98])).max())
        row[2].imshow(ratio, extent=view.extent, origin="lower", cmap=_RATIO, vmin=-span, vmax=span, interpolation="bilinear")
        points = coarse.points()
        with torch.no_grad():
            push = models.main.score(points, CLOSEUP_SIGMA) - guide.score(points, CLOSEUP_SIGMA)
        # Lengths are compressed, because the push grows without bound away from the tree.
        norm = push.norm(dim=1, keepdim=True)
        arrows = (push / norm * norm.sqrt() / norm.sqrt().max()).numpy()
        row[2].quiver(*points.numpy().T, *arrows.T, color=INK, scale=12, width=0.0045, zorder=3)
        noisy.draw(row[2], names=("A",), filled=False)
        _frame(row[2], view, r"$\log\,p_1/p_0$ and its gradient")
        for axes, method, title in zip(row[3:], ("none", name), ("No guidance", label), strict=True):
            clean.draw(axes)
            _show_paths(axes, view, paths[method])
            _frame(axes, view, f"Trajectories: {title[0].lower()}{title[1:]}")
    return figure


def figure_densities(models: _Models, autoguidance_weight: float) -> Figure:
    """Figure 9: the densities at five noise levels: the truth, the main model, its bad version, and what guidance makes of the two.

    The last row is p1^w / p0^(w-1), whose score autoguidance follows. It is not the noised version of any density at sigma = 0.
    """
    view = View(*PANEL_VIEW, 260)
    w = autoguidance_weight
    labels = ("Truth, A", "Main, $p_1$", "Bad version, $p_0$", f"Guided, $p_1^{{{w:g}}}\\,/\\,p_0^{{{w - 1:g}}}$")
    figure = Figure(figsize=(16, 13), layout="constrained")
    grid = figure.subplots(len(labels), len(DENSITY_SIGMAS), squeeze=False)
    for column, sigma in enumerate(DENSITY_SIGMAS):
        truth = TrueDensity(view, sigma)
        main, bad = (_implied(network, view, sigma) for network in (models.main, models.bad))
        for row, (label, image) in enumerate(zip(labels, (truth.log_density["A"], main, bad, w * main - (w - 1) * bad), strict=True)):
            axes = grid[row, column]
            _show_density(axes, view, image)
            truth.draw(axes, names=("A",), filled=False, width=0.5)
            _frame(axes, view, rf"$\sigma = {sigma:g}$" if row == 0 else "", label if column == 0 else "")
    return figure


def save_figure(figure: Figure, stem: Path) -> list[Path]:
    """Write `stem`.png and `stem`.svg; a reader never sees half a file."""
    written = []
    for suffix, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
        path = stem.with_name(f"{stem.name}.{suffix}")
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format=suffix, dpi=150, facecolor="white", metadata=metadata)
        written.append(path)
    return written


def draw_figures(
    out: Path,
    models: _Models,
    samples: Mapping[str, Float[Tensor, "N 2"]],
    paths: Mapping[str, Float[Tensor, "T N 2"]],
    autoguidance_weight: float,
) -> list[str]:
    """Draw Figures 1, 2 and 9 into a folder.

    Args:
        out: the folder.
        models: the three networks.
        samples: points per panel.
        paths: points at every sampling step of the generated panels.
        autoguidance_weight: w of the guided densities in Figure 9.

    Returns: the files' names.
    """
    written: list[Path] = []
    with rc_context(_STYLE):
        written += save_figure(figure_panels(samples), out / "figure1-panels")
        written += save_figure(figure_closeup(models, paths), out / "figure2-closeup")
        written += save_figure(figure_densities(models, autoguidance_weight), out / "figure9-densities")
    return [path.name for path in written]
