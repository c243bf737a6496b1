"""The comparison in plain words: how much better is one method than another, and is that more than the spread?

Problem: a mean distance alone invites a claim that the repeats do not carry. Two methods were each measured R times,
repeat r of both with the same seeds. The relative reduction of the Fréchet distance by a against b is

    reduction = 1 - mean_r(fd_a) / mean_r(fd_b),        spread = std_r(1 - fd_a[r] / fd_b[r])  (n - 1),

and the two are called different only where every repeat of one lies below every repeat of the other. With R = 3 per
method and no difference at all that happens by chance in 2 of 20 orderings, so the words stay modest and the repeats
are always shown. A reduction compares distances measured by one protocol on equal counts of images; it is no
statement about other features.
"""

from dataclasses import dataclass

import numpy as np

from autoguidance.report.records import METHOD_TITLES, Row, RunRecords


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Row `a` against row `b`.

    Attributes:
        reduction: share by which a's distance is lower (negative: higher).
        spread: standard deviation of the reduction over paired repeats; None with fewer than two.
        separated: whether the repeats of a and b do not overlap; False with fewer than two of either.
        num_repeats: paired repeats.
    """

    reduction: float
    spread: float | None
    separated: bool
    num_repeats: int


def compare(a: Row, b: Row) -> Comparison | None:
    """Compare two rows; None where either has no distance or b's is zero."""
    if a.fd is None or b.fd is None or b.fd <= 0:
        return None
    first, second = np.array(a.fd_repeats), np.array(b.fd_repeats)
    paired = len(first) == len(second) >= 2 and bool((second > 0).all())
    spread = float(np.std(1 - first / second, ddof=1)) if paired else None
    separated = min(len(first), len(second)) >= 2 and bool(first.max() < second.min() or second.max() < first.min())
    return Comparison(
        reduction=1 - a.fd / b.fd, spread=spread, separated=separated, num_repeats=min(len(first), len(second))
    )


def percent(value: float, spread: float | None = None) -> str:
    """A share as text: percent(0.368, 0.012) is "36.8 ± 1.2 %"."""
    return f"{100 * value:.1f} %" if spread is None else f"{100 * value:.1f} ± {100 * spread:.1f} %"


def change(reduction: float, spread: float | None = None) -> str:
    """A reduction as the change of a distance: change(0.368) is "−36.8 %"; what rounds to nothing has no sign."""
    return percent(round(-reduction, 3) + 0.0, spread).replace("-", "−")


def figure(value: float | None, digits: int = 3) -> str:
    """A number to `digits` significant digits, with an exponent only if very large or small; "–" for None."""
    if value is None:
        return "–"
    if value == 0:
        return "0"
    # The exponent after rounding: 9.996 has three digits as 10.0, not as 10.00.
    decimals = digits - 1 - int(f"{value:.{digits - 1}e}".partition("e")[2])
    if decimals > 6 or decimals < -6:
        return f"{value:.{digits - 1}e}"
    return f"{round(value, decimals):,.{max(decimals, 0)}f}".replace(",", "\u2009")


def _in_words(row: Row, reference: Row) -> str:
    """What the repeats of two methods say, in one sentence; "" where one was not measured."""
    result = compare(row, reference)
    if result is None:
        return ""
    name, other = (METHOD_TITLES.get(method, method) for method in (row.method, reference.method))
    other = "the unguided model" if reference.method == "unguided" else other
    if result.num_repeats > 1 and not result.separated:
        return (
            f"{name} makes no clear difference to {other}: Fréchet distance {figure(row.fd)} against "
            f"{figure(reference.fd)}, and the repeats of the two overlap."
        )
    amount = percent(abs(result.reduction), result.spread)
    direction = "lower" if result.reduction > 0 else "higher"
    once = "" if result.num_repeats > 1 else " Each was measured once, so the spread is unknown."
    return (
        f"{name} has a Fréchet distance {amount} {direction} than {other}: "
        f"{figure(row.fd)} against {figure(reference.fd)}.{once}"
    )


def headline(records: RunRecords) -> str:
    """One sentence with the run's main result: autoguidance (else the best method) against the unguided model."""
    unguided = records.best("unguided")
    others = [row.method for row in records.rows if row.method != "unguided"]
    guided = records.best("autoguidance") or (records.best(*others) if others else None)
    if guided is not None and unguided is not None and (text := _in_words(guided, unguided)):
        return text
    best = records.best()
    if best is None:
        return "Nothing was measured: no method has a distance."
    title = METHOD_TITLES.get(best.method, best.method)
    return f"{title} has a Fréchet distance of {figure(best.fd)}; there is nothing to compare it with."


def second_line(records: RunRecords) -> str:
    """Autoguidance against the best classifier-free setting, in one sentence; "" where either was not measured."""
    guided, free = records.best("autoguidance"), records.best("cfg", "cfg+interval")
    return "" if guided is None or free is None else _in_words(guided, free)
