"""How much of what is generated is real, and how much of the real is generated: precision, recall, density, coverage.

Real features y_1 .. y_m and generated x_1 .. x_n in R^d. A set is taken to fill the balls around its points that reach
to the k-th nearest neighbour within the set, of radius r_k. (The point itself is not its neighbour.)

    precision = share of x_j with |x_j - y_i| <= r_k(y_i) for some i                                        k = 3
    recall    = share of y_i with |y_i - x_j| <= r_k(x_j) for some j                                        k = 3
    density   = 1 / (k n)  sum_j #{i : |x_j - y_i| < r_k(y_i)}       about 1 for equal distributions        k = 5
    coverage  = share of y_i with |x_j - y_i| < r_k(y_i) for some j                                         k = 5

<= and < as in the authors' definitions; it matters only for ties. One outlier among the real images has a huge ball
and raises precision; density and coverage were made to stand that.

n m distances do not fit into memory (10 GB at 50,000 x 50,000), so they are made in tiles, from products in float32
of centred features. Counts must not depend on how the tiles are cut or on who computes them, and a ball has its k-th
neighbour exactly on its edge. So a tile only decides what is decided clearly; every pair nearer to a tie than
rounding (`_SLACK` (d^(1/2) + 4) eps of |x|^2 + |y|^2) is computed again as sum (x - y)^2 in float64 from the features
themselves, one pair at a time in a fixed order, and so are the radii. All four figures are then exactly those of
brute force in float64, for any tile size and number of processes. Exact copies are recognised by their bytes, so that a
generator that repeats itself does not make every pair a tie.

Not to be confused with precision and recall of Sajjadi et al. 2018 (clusters), nor with torch-fidelity before 0.4,
which exchanged the two.

Reference: Kynkäänniemi et al. 2019, arXiv 1904.06991; Naeem et al. 2020, arXiv 2002.09797.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from autoguidance.errors import UserError
from autoguidance.evaluate.processes import Processes

NEIGHBOURS_PRECISION = 3
NEIGHBOURS_DENSITY = 5
_TILE = 2048
_SLACK = 4.0  # times the expected rounding error of a product; a pair nearer to a tie is computed again
_SPARE = 8  # candidates beyond the k-th neighbour, among which the exact distances decide
_PAIRS_AT_ONCE = 4096  # 64 MiB of float64 differences at d = 2048


@dataclass(frozen=True, kw_only=True)
class ManifoldFigures:
    """Precision, recall, density, coverage; all but density lie in [0, 1]."""

    precision: float
    recall: float
    density: float
    coverage: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Neighbourhoods:
    """A set of features with the balls around them.

    Attributes:
        features: float32 [n, d].
        radii2: float64 [n, 2], the squared distances to the 3rd and 5th nearest neighbour within the set.
    """

    features: Float[np.ndarray, "n d"]
    radii2: Float64[np.ndarray, "n 2"]


def exact_distances2(
    x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"], i: Int64[np.ndarray, "p"], j: Int64[np.ndarray, "p"]
) -> Float64[np.ndarray, "p"]:
    """|x_i - y_j|^2 for pairs, in float64, each bitwise the same whatever the other pairs are."""
    found = np.empty(len(i))
    for start in range(0, len(i), _PAIRS_AT_ONCE):
        rows = slice(start, start + _PAIRS_AT_ONCE)
        difference = x[i[rows]].astype(np.float64) - y[j[rows]]
        found[rows] = np.square(difference).sum(axis=1)
    return found


class _Tiles:
    """Squared distances of one set to another, tile by tile, with the margin by which rounding may be off."""

    def __init__(self, x: np.ndarray, y: np.ndarray, centre: np.ndarray, tile: int, device: torch.device | str) -> None:
        # TF32 and bfloat16 products, which a caller may have allowed, would be too coarse.
        single = torch.get_float32_matmul_precision() == "highest"
        self.dtype = torch.float32 if single else torch.float64
        self.device = torch.device(device)
        self.tile = tile
        self.slack = _SLACK * (math.sqrt(x.shape[1]) + 4) * float(np.finfo(np.float32).eps)
        self._x, self._y, self._centre = x, y, centre

    def _load(self, features: np.ndarray, rows: range) -> tuple[Tensor, Tensor]:
        part = torch.from_numpy(features[rows.start : rows.stop] - self._centre).to(self.device, self.dtype)
        return part, part.square().sum(dim=1)

    def rows(self, rows: range) -> Iterator[tuple[range, Iterator[tuple[range, Tensor, Tensor]]]]:
        """For each stretch of rows: (its rows, tiles along it as (columns, distances, margins))."""
        for first in range(rows.start, rows.stop, self.tile):
            stretch = range(first, min(first + self.tile, rows.stop))
            yield stretch, self._along(stretch)

    def _along(self, stretch: range) -> Iterator[tuple[range, Tensor, Tensor]]:
        x, x2 = self._load(self._x, stretch)
        for start in range(0, len(self._y), self.tile):
            columns = range(start, min(start + self.tile, len(self._y)))
            y, y2 = self._load(self._y, columns)
            size = x2[:, None] + y2
            yield columns, torch.addmm(size, x, y.T, alpha=-2), size * self.slack


def _centre(features: np.ndarray) -> Float[np.ndarray, "d"]:
    return features.mean(axis=0, dtype=np.float64).astype(np.float32)


def _check(features: np.ndarray, what: str) -> Float[np.ndarray, "n d"]:
    if features.ndim != 2 or len(features) <= NEIGHBOURS_DENSITY:
        raise UserError(
            f"{what} have the shape {list(features.shape)}; precision, recall, density and coverage need more than "
            f"{NEIGHBOURS_DENSITY} images of each kind"
        )
    if not np.isfinite(features).all():
        raise UserError(f"{what} hold NaN or infinity; check the images and the feature network")
    return np.ascontiguousarray(features, dtype=np.float32)


def neighbourhoods(
    features: Float[np.ndarray, "n d"],
    *,
    what: str = "the features",
    tile: int = _TILE,
    device: torch.device | str = "cpu",
    processes: Processes | None = None,
) -> Neighbourhoods:
    """The balls around each point of a set that reach to its 3rd and 5th nearest neighbour.

    Args:
        features: all of the set, at least 6 rows.
        what: names them in error messages.
        tile: rows and columns of a tile; memory and speed, never the result.
        device: where the products are computed.
        processes: share the rows; every process must hold all features, and gets the result.

    Raises:
        UserError: too few images, or NaN.
    """
    processes = processes or Processes()
    rows = _check(features, what)
    keep = min(NEIGHBOURS_DENSITY + _SPARE, len(rows) - 1)
    tiles = _Tiles(rows, rows, _centre(rows), tile, device)
    found = []
    for stretch, along in tiles.rows(processes.part(len(rows))):
        nearest: tuple[Tensor, Tensor] | None = None
        for columns, distances, _ in along:
            first = max(stretch.start, columns.start)
            own = torch.arange(first, max(first, min(stretch.stop, columns.stop)))
            distances[own - stretch.start, own - columns.start] = math.inf  # nobody is its own neighbour
            index = torch.arange(columns.start, columns.stop, device=distances.device).expand(len(stretch), -1)
            if nearest is not None:
                distances, index = torch.cat([nearest[0], distances], 1), torch.cat([nearest[1], index], 1)
            values, place = distances.topk(min(keep, distances.shape[1]), dim=1, largest=False)
            nearest = values, index.gather(1, place)
        assert nearest is not None
        candidates = nearest[1].cpu().numpy()
        i = np.repeat(np.arange(stretch.start, stretch.stop), candidates.shape[1])
        exact = np.sort(exact_distances2(rows, rows, i, candidates.ravel()).reshape(candidates.shape), axis=1)
        found.append(exact[:, [NEIGHBOURS_PRECISION - 1, NEIGHBOURS_DENSITY - 1]])
    mine = np.concatenate(found) if found else np.empty((0, 2))
    return Neighbourhoods(features=rows, radii2=np.concatenate(processes.gather(mine)))


def _copies(real: np.ndarray, generated: np.ndarray) -> tuple[Int64[np.ndarray, "m"], Int64[np.ndarray, "n"]]:
    """A number per row; equal rows, of either set, have equal numbers."""
    every = np.concatenate([real, generated])
    rows = every.view(np.dtype((np.void, every.dtype.itemsize * every.shape[1]))).ravel()
    numbers = np.unique(rows, return_inverse=True)[1].reshape(-1)
    return numbers[: len(real)], numbers[len(real) :]


def _inside(
    distances: Tensor, margins: Tensor, radii2: Tensor, exact: "_Exact", corner: tuple[int, int], *, closed: bool
) -> Bool[Tensor, "rows columns"]:
    """Which pairs of a tile lie within the balls: as the tile says where that is clear, else as `exact` says."""
    beyond = distances - radii2.to(distances.dtype)
    inside = beyond < 0
    close = torch.nonzero(beyond.abs() <= margins)
    if len(close):
        i, j = close.T.cpu().numpy()
        true = exact(i + corner[0], j + corner[1])
        edge = radii2.expand_as(distances)[close[:, 0], close[:, 1]].cpu().numpy()
        decided = true <= edge if closed else true < edge
        inside[close[:, 0], close[:, 1]] = torch.from_numpy(decided).to(inside.device)
    return inside


class _Exact:
    """Exact distances between real (row) and generated (column) features by their numbers."""

    def __init__(self, real: np.ndarray, generated: np.ndarray) -> None:
        self._real, self._generated = real, generated
        self._real_copies, self._generated_copies = _copies(real, generated)

    def __call__(self, i: np.ndarray, j: np.ndarray) -> Float64[np.ndarray, "p"]:
        found = np.zeros(len(i))
        different = np.flatnonzero(self._real_copies[i] != self._generated_copies[j])
        found[different] = exact_distances2(self._real, self._generated, i[different], j[different])
        return found


def manifold_figures(
    generated: Neighbourhoods,
    real: Neighbourhoods,
    *,
    tile: int = _TILE,
    device: torch.device | str = "cpu",
    processes: Processes | None = None,
) -> ManifoldFigures:
    """Precision, recall, density and coverage of generated images.

    Args:
        generated, real: from `neighbourhoods`.
        tile: rows and columns of a tile; memory and speed, never the result.
        device: where the products are computed.
        processes: share the real images; every process gets the result.

    Raises:
        UserError: features of other dimensions.
    """
    processes = processes or Processes()
    x, y = generated.features, real.features
    if x.shape[1] != y.shape[1]:
        raise UserError(f"features of {x.shape[1]} and {y.shape[1]} dimensions do not compare; use one feature network")
    tiles = _Tiles(y, x, _centre(y), tile, device)
    exact = _Exact(y, x)
    # Radii stay in float64 for the pairs that are decided exactly.
    real_radii2 = torch.from_numpy(real.radii2).to(device)
    generated_radii2 = torch.from_numpy(generated.radii2).to(device)
    mine = processes.part(len(y))
    precise = torch.zeros(len(x), dtype=torch.bool, device=device)
    recalled, covered, balls = 0, 0, 0
    for stretch, along in tiles.rows(mine):
        row_recalled = torch.zeros(len(stretch), dtype=torch.bool, device=device)
        row_covered = torch.zeros_like(row_recalled)
        own = real_radii2[stretch.start : stretch.stop]
        for columns, distances, margins in along:
            corner = (stretch.start, columns.start)
            other = generated_radii2[columns.start : columns.stop, 0]
            near = _inside(distances, margins, own[:, :1], exact, corner, closed=True)
            precise[columns.start : columns.stop] |= near.any(dim=0)
            row_recalled |= _inside(distances, margins, other[None], exact, corner, closed=True).any(dim=1)
            near = _inside(distances, margins, own[:, 1:], exact, corner, closed=False)
            row_covered |= near.any(dim=1)
            balls += int(near.sum())
        recalled += int(row_recalled.sum())
        covered += int(row_covered.sum())
    parts = processes.gather((precise.cpu().numpy(), recalled, covered, balls))
    return ManifoldFigures(
        precision=float(np.mean(np.any([part[0] for part in parts], axis=0))),
        recall=sum(part[1] for part in parts) / len(y),
        density=sum(part[3] for part in parts) / (NEIGHBOURS_DENSITY * len(x)),
        coverage=sum(part[2] for part in parts) / len(y),
    )
