"""Coordinate search over a small grid: move along one axis at a time, as long as that helps.

A setting of (w, EMA_main, EMA_guide, guide) is a point on a grid of ordered axes. The paper moved a local grid by
hand around the best point so far (Appendix B.1). Here: measure some starting points; from the best, try both
neighbours on one axis and go on in the direction that helps; then the next axis; when no axis helps, halve the step;
stop when the budget is spent or no neighbour is better. Where two axes work against each other (a better guide wants a
larger w), their diagonal is one more direction to try. Every point is measured on the same seeds, so that
differences between points are mostly differences between settings. Points are measured a few at a time, so several
processes have work.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

Point = tuple[int, ...]
"""One index per axis."""


@dataclass(frozen=True)
class Search:
    """How a search ended.

    Attributes:
        best: the best point measured.
        value: its value.
        measured: every point measured, with its value.
        at_edge: axes on which the best point lies at an end of the range although the axis has more than two values.
        exhausted: whether the budget ended it, not the lack of better neighbours.
    """

    best: Point
    value: float
    measured: dict[Point, float]
    at_edge: tuple[int, ...]
    exhausted: bool


def coordinate_search(
    sizes: Sequence[int],
    measure: Callable[[list[Point]], list[float]],
    starts: Sequence[Point],
    budget: int,
    *,
    steps: Sequence[int] | None = None,
    diagonals: Sequence[tuple[int, int]] = (),
) -> Search:
    """Minimise a function on a grid.

    Args:
        sizes: number of values per axis.
        measure: values of several points at once; lower is better. Each point is asked for once.
        starts: points to begin with, most promising first; at least one. All count against the budget.
        budget: most points to measure.
        steps: first step per axis; None: 2 on axes with more than six values, else 1.
        diagonals: pairs of axes along which the search also moves at once, both up or both down; tried after their second axis.
    """
    measured: dict[Point, float] = {}

    def look(points: Sequence[Point]) -> None:
        fresh = [p for p in dict.fromkeys(points) if p not in measured][: max(0, budget - len(measured))]
        if fresh:
            measured.update(zip(fresh, measure(fresh), strict=True))

    look(starts)
    best = min(measured, key=measured.__getitem__)
    stride = list(steps) if steps is not None else [2 if size > 6 else 1 for size in sizes]
    directions: list[tuple[int, ...]] = []
    for axis in range(len(sizes)):
        directions += [(axis,), *(pair for pair in diagonals if pair[1] == axis)]
    turn, stale = 0, 0
    while len(measured) < budget:
        if stale == len(directions):
            if max(stride) == 1:
                break
            stride, stale = [max(1, step // 2) for step in stride], 0
        look([point for sign in (1, -1) if (point := _moved(best, directions[turn], sign, stride, sizes))])
        winner = min(measured, key=measured.__getitem__)
        if winner != best:
            best, stale = winner, 0  # and go on along the same direction
        else:
            stale += 1
            turn = (turn + 1) % len(directions)
    edges = tuple(i for i, size in enumerate(sizes) if size > 2 and best[i] in (0, size - 1))
    return Search(best, measured[best], measured, edges, len(measured) >= budget)


def _moved(point: Point, axes: tuple[int, ...], sign: int, stride: Sequence[int], sizes: Sequence[int]) -> Point | None:
    """The neighbour along these axes; None outside the grid."""
    moved = list(point)
    for axis in axes:
        moved[axis] += sign * stride[axis]
        if not 0 <= moved[axis] < sizes[axis]:
            return None
    return tuple(moved)
