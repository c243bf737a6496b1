"""The settings that a search chooses from: ordered axes of values, and where they lie for a model of the distance.

A point is one index per axis. Beside its values an axis has a coordinate per value (the scale on which the distance
varies evenly: the logarithm of an EMA width, of w - 0.75, of a guide's age) and a category (which run a guide comes
from).

A guide pushes by w - 1 times its difference from the main model, and an older guide differs less. So settings are compared
by the push u, and as there is nothing to choose of a guide that does not push, what is chosen of it fades with u:

    u = (w - 1) s                              s the guide's difference from the main model, on any scale
    x_w = log(u + 1/4)                         so that as much lies between w = 1 and 1.5 as between 1.5 and 3 (s = 1)
    x_j = t (c_j - mean c_j),  t = 1 - exp(-u / 0.3)      for an axis that fades, c_j its coordinate
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from autoguidance.errors import UserError

Point = tuple[int, ...]
"""One index per axis."""

_NO_PUSH = 0.25

Value = float | str


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One thing to choose.

    Attributes:
        name: e.g. "weight".
        values: what can be chosen, in order.
        coordinates: one number per value.
        categories: one per value; (): all the same.
        fades: what it chooses matters only as far as there is guidance.
        amounts: w - 1 of each value; (): it does not decide that.
        scales: s of each value; (): 1.
    """

    name: str
    values: tuple[Value, ...]
    coordinates: tuple[float, ...]
    categories: tuple[int, ...] = ()
    fades: bool = False
    amounts: tuple[float, ...] = ()
    scales: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.values or len(set(self.values)) != len(self.values):
            raise UserError(f"{self.name}: give at least one value, each once")
        if len(self.coordinates) != len(self.values) or (self.categories and len(self.categories) != len(self.values)):
            raise UserError(f"{self.name}: one coordinate and category per value")
        if any(numbers and len(numbers) != len(self.values) for numbers in (self.amounts, self.scales)):
            raise UserError(f"{self.name}: one amount and scale per value")

    def column(self) -> Float64[np.ndarray, "values"]:
        """Coordinates of its values, those of a fading axis around their mean."""
        column = np.asarray(self.coordinates, dtype=np.float64)
        return column - column.mean() if self.fades else column


class Places(NamedTuple):
    """Where settings lie, for a model of the distance.

    Attributes:
        coordinates: [n, p].
        categories: [n].
        strengths: t, [n], 0 to 1: how much the category matters.
    """

    coordinates: Float64[np.ndarray, "n p"]
    categories: Int64[np.ndarray, "n"]
    strengths: Float64[np.ndarray, "n"]


@dataclass(frozen=True)
class Grid:
    """Axes, and which of their combinations exist.

    Attributes:
        axes: what to choose.
        excluded: pairs ((axis, index), (axis, index)) that do not go together, such as a guide and an EMA width that its snapshots cannot
            represent.
    """

    axes: tuple[Axis, ...]
    excluded: frozenset[tuple[tuple[int, int], tuple[int, int]]] = field(default_factory=frozenset)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of values per axis."""
        return tuple(len(axis.values) for axis in self.axes)

    @cached_property
    def _indices(self) -> Int64[np.ndarray, "n axes"]:
        """The points as one array: grids reach hundreds of thousands of them."""
        indices = np.indices(self.sizes).reshape(len(self.axes), math.prod(self.sizes))
        kept = np.ones(indices.shape[1], dtype=bool)
        for (a, i), (b, j) in self.excluded:
            kept &= (indices[a] != i) | (indices[b] != j)
        return indices[:, kept].T

    @cached_property
    def points(self) -> tuple[Point, ...]:
        """Every setting there is."""
        return tuple(map(tuple, self._indices.tolist()))

    @cached_property
    def _varying(self) -> tuple[Axis, ...]:
        return tuple(axis for axis in self.axes if len(axis.values) > 1)

    @property
    def _guided(self) -> bool:
        return any(axis.amounts for axis in self._varying)

    @cached_property
    def _push(self) -> Float64[np.ndarray, "n"]:
        push = np.ones(len(self.points))
        for axis, chosen in zip(self.axes, self._indices.T, strict=True):
            for numbers in (axis.amounts, axis.scales):
                push *= np.asarray(numbers)[chosen] if numbers else 1
        return push

    @cached_property
    def log_push(self) -> Float64[np.ndarray, "n"]:
        """x_w of `points`; 0 where no axis has amounts."""
        return np.log(self._push + _NO_PUSH) if self._guided else np.zeros(len(self.points))

    @cached_property
    def strengths(self) -> Float64[np.ndarray, "n"]:
        """t of `points`; 1 where no axis has amounts."""
        return 1 - np.exp(-self._push / 0.3) if self._guided else np.ones(len(self.points))

    @cached_property
    def coordinates(self) -> Float64[np.ndarray, "n p"]:
        """Coordinates of `points`; axes with a single value are left out."""
        columns = [
            self.log_push if axis.amounts else axis.column()[chosen] * (self.strengths if axis.fades else 1)
            for axis, chosen in zip(self.axes, self._indices.T, strict=True)
            if len(axis.values) > 1
        ]
        return np.stack(columns, axis=1) if columns else np.zeros((len(self.points), 1))

    def places(self, points: Sequence[Point]) -> Places:
        """Where points lie."""
        return self.places_at(np.array([self.index[point] for point in points], dtype=np.int64))

    def places_at(self, rows: Int64[np.ndarray, "m"]) -> Places:
        """As `places`, by their rows in `points`."""
        return Places(self.coordinates[rows], self.categories[rows], self.strengths[rows])

    def without_guidance(self, setting: Mapping[str, Value]) -> Float64[np.ndarray, "p"] | None:
        """Coordinates of the unguided model of a setting, which no point of the grid is.

        Returns: None where no axis says what no guidance is, or the setting does not name a value for each axis that does not fade.
        """
        if not self._guided:
            return None
        row = []
        for axis in self._varying:
            if axis.amounts:
                row.append(math.log(_NO_PUSH))
            elif axis.fades:
                row.append(0.0)
            elif setting.get(axis.name) in axis.values:
                row.append(float(axis.column()[axis.values.index(setting[axis.name])]))
            else:
                return None
        return np.array(row)

    @cached_property
    def categories(self) -> Int64[np.ndarray, "n"]:
        """Category of `points`: those of all axes as one number."""
        combined = np.zeros(len(self.points), dtype=np.int64)
        for i, axis in enumerate(self.axes):
            if axis.categories:
                combined = combined * (max(axis.categories) + 1) + np.asarray(axis.categories)[self._indices[:, i]]
        return combined

    @cached_property
    def index(self) -> Mapping[Point, int]:
        """Place of a point in `points`."""
        return {point: place for place, point in enumerate(self.points)}

    def setting(self, point: Point) -> dict[str, Value]:
        """The values at a point, by axis."""
        return {axis.name: axis.values[i] for axis, i in zip(self.axes, point, strict=True)}

    def point(self, setting: Mapping[str, Value]) -> Point | None:
        """The point of a setting that `setting` made; None where it is not of this grid."""
        if set(setting) != {axis.name for axis in self.axes}:
            return None
        try:
            point = tuple(axis.values.index(setting[axis.name]) for axis in self.axes)
        except ValueError:
            return None
        return point if point in self.index else None

    def nearest(self, wanted: Mapping[str, Value]) -> Point:
        """The existing point nearest to wanted values; axes that are not named take the middle of their range."""
        gaps = np.zeros(len(self.points))
        for axis, chosen in zip(self.axes, self._indices.T, strict=True):
            value = wanted.get(axis.name)
            if value is None:
                place = len(axis.values) // 2
            elif value in axis.values:
                place = axis.values.index(value)
            else:
                numbers = np.asarray([float(v) for v in axis.values])
                place = int(np.abs(numbers - float(value)).argmin())
            gaps += ((np.asarray(axis.coordinates) - axis.coordinates[place]) ** 2)[chosen]
            if isinstance(value, str):  # a name has no neighbours
                gaps += 1e6 * (chosen != place)
        return self.points[int(gaps.argmin())]

    def at_edge(self, point: Point) -> tuple[str, ...]:
        """Axes on which a point lies at an end of a range of more than two values, so that a better one may lie beyond."""
        return tuple(
            axis.name
            for axis, i in zip(self.axes, point, strict=True)
            if len(axis.values) > 2 and not isinstance(axis.values[0], str) and i in (0, len(axis.values) - 1)
        )


def subset(places: Sequence[int], limit: int, seed: int) -> np.ndarray:
    """At most `limit` of the places, drawn by seed: what a search looks at when a grid is very large."""
    chosen = np.asarray(places)
    if len(chosen) <= limit:
        return chosen
    return np.sort(np.random.default_rng(seed).choice(chosen, limit, replace=False))
