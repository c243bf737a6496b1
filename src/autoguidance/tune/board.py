"""The board of a search: what has been measured, who is measuring what, and how one takes a piece of the work.

Problem: several processes, perhaps on several machines, search for one setting together. Any of them may be killed at
any time. None of them is the master, and what one has measured must neither be lost nor be counted twice.

    unit      one measurement: one setting on one set of seeds, first_seed .. first_seed + num_images - 1
    claim     "I measure this": at most one living worker holds the claim on a unit; it is renewed while work goes on
    finished  the value is written down for good; at most once per unit

A worker repeats: `state()` -> choose a unit -> `claim(unit)` (None: somebody else was faster, look again) -> measure ->
`finish(value)`. It uses the claim as a context manager, which renews it in the background, and gives it back, or
notes the failure, if the measurement is left by an exception:

    with claim:
        claim.finish(measure(claim.unit), {"seconds": 12.5})

Lower values are better. What is chosen is none of the board's business.
"""

import json
import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from autoguidance.errors import UserError

Setting = Mapping[str, float | str]
"""Values by the name of their axis."""

Axes = Mapping[str, Sequence[float] | Sequence[str]]
"""What a setting may hold: (lowest, highest) of a number, or the names to choose from. A setting need not hold every axis."""


@dataclass(frozen=True)
class Unit:
    """One measurement: the unit of work. Make it from a mapping by `Unit.of`.

    Attributes:
        setting: (name, value) sorted by name.
        first_seed, num_images: seeds first_seed .. first_seed + num_images - 1.
    """

    setting: tuple[tuple[str, float | str], ...]
    first_seed: int
    num_images: int

    def __post_init__(self) -> None:
        names = [name for name, _ in self.setting]
        if names != sorted(set(names)):
            raise UserError(f"setting {self.setting}: give each name once, sorted")
        for name, value in self.setting:
            if not isinstance(value, str) and not math.isfinite(value):
                raise UserError(f"setting {name}={value}: give a finite number or a text")
        if self.first_seed < 0 or self.num_images < 1:
            raise UserError(f"seeds from {self.first_seed}, {self.num_images} images: give at least 0 and 1")

    @classmethod
    def of(cls, setting: Setting, *, first_seed: int, num_images: int) -> Self:
        """The unit of a setting; numbers of other kinds (int, numpy) become floats."""
        values = ((name, value if isinstance(value, str) else float(value)) for name, value in setting.items())
        return cls(tuple(sorted(values)), int(first_seed), int(num_images))

    @property
    def values(self) -> dict[str, float | str]:
        """The setting as a dictionary."""
        return dict(self.setting)


@dataclass(frozen=True)
class Finished:
    """A unit that was measured.

    Attributes:
        value: lower is better.
        details: JSON-like, as the worker gave them.
        number: of the trial; ascending in the order of claiming.
    """

    unit: Unit
    value: float
    details: Mapping[str, Any]
    number: int


@dataclass(frozen=True)
class State:
    """What is known at one moment.

    Attributes:
        finished: each unit at most once, in order of completion (by the clocks of those who finished them).
        pending: units that a living worker holds.
        failed: how often the measurement of a unit failed.
        expired: how often a worker that held a unit vanished. These units can be claimed again.
    """

    finished: tuple[Finished, ...] = ()
    pending: tuple[Unit, ...] = ()
    failed: Mapping[Unit, int] = field(default_factory=dict)
    expired: Mapping[Unit, int] = field(default_factory=dict)


class Claim(Protocol):
    """The right to measure a unit. Entering it renews it in the background until it is settled; leaving it unsettled
    gives it back, or, by an `Exception`, fails it with the exception's text."""

    @property
    def unit(self) -> Unit:
        """What to measure."""
        ...

    def finish(self, value: float, details: Mapping[str, Any]) -> bool:
        """Write the result down, for good when this returns.

        Args:
            value: the measured value. NaN and infinity count as a failure.
            details: JSON-like, without NaN.

        Returns:
            Whether the result counts. False: the claim had expired and somebody else holds or has finished the unit; or
            the value was not finite.

        Raises: UserError where it cannot be written.
        """
        ...

    def fail(self, reason: str) -> None:
        """Note that the measurement failed."""
        ...

    def release(self) -> None:
        """Give the unit back. Does nothing where the claim is settled already."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Board(Protocol):
    """What the workers of one search share. One object per process; its methods may be called from any thread."""

    def state(self) -> State:
        """What is known now. Claims of vanished workers are ended on the way."""
        ...

    def claim(self, unit: Unit) -> Claim | None:
        """Take a unit. None: somebody holds it or it is finished. Raises UserError for a setting outside the axes."""
        ...

    def close(self) -> None:
        """Let go of files and connections."""
        ...


class SettledOnce(ABC):
    """The part of a claim that every board shares: it is settled once, and what leaving it means."""

    def __init__(self, unit: Unit) -> None:
        self._unit = unit
        self._settled = False

    @property
    def unit(self) -> Unit:
        """What to measure."""
        return self._unit

    def finish(self, value: float, details: Mapping[str, Any]) -> bool:
        """See `Claim.finish`."""
        value, copied = float(value), json.loads(json.dumps(dict(details), allow_nan=False))
        self._settle()
        if not math.isfinite(value):
            self._fail(f"the value is {value}")
            return False
        return self._finish(value, copied)

    def fail(self, reason: str) -> None:
        """See `Claim.fail`."""
        self._settle()
        self._fail(reason)

    def release(self) -> None:
        """See `Claim.release`."""
        if not self._settled:
            self._settle()
            self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._settled:
            return
        try:
            if isinstance(error, Exception):
                self.fail(f"{type(error).__name__}: {error}")
            else:
                self.release()
        except UserError:
            if error is None:
                raise  # else the first error is the one to see

    def _settle(self) -> None:
        if self._settled:
            raise RuntimeError(f"the claim on {self._unit} is settled already")
        self._settled = True

    @abstractmethod
    def _finish(self, value: float, details: dict[str, Any]) -> bool:
        """Write the result down; whether it counts."""

    @abstractmethod
    def _fail(self, reason: str) -> None:
        """Note the failure."""

    @abstractmethod
    def _release(self) -> None:
        """Give the unit back."""


class MemoryBoard:
    """A board within one process: for searches that nobody shares, and for tests.

    Args:
        axes: what a setting may hold; None: anything.
    """

    def __init__(self, axes: Axes | None = None) -> None:
        self._axes = axes
        self._lock = threading.Lock()
        self._finished: dict[Unit, Finished] = {}
        self._pending: dict[Unit, int] = {}
        self._failed: dict[Unit, int] = {}
        self._next = 0

    def state(self) -> State:
        """See `Board.state`. Nothing expires: a claim ends with its process."""
        with self._lock:
            return State(tuple(self._finished.values()), tuple(self._pending), dict(self._failed))

    def claim(self, unit: Unit) -> "Claim | None":
        """See `Board.claim`."""
        if self._axes is not None:
            check_setting(unit, self._axes)
        with self._lock:
            if unit in self._pending or unit in self._finished:
                return None
            self._pending[unit] = self._next
            self._next += 1
        return _MemoryClaim(self, unit)

    def close(self) -> None:
        """Nothing to let go of."""

    def end(self, unit: Unit, *, value: float | None, details: Mapping[str, Any], failed: bool) -> None:
        """End the claim on a unit (called by the claim)."""
        with self._lock:
            number = self._pending.pop(unit)
            if value is not None:
                self._finished[unit] = Finished(unit, value, details, number)
            elif failed:
                self._failed[unit] = self._failed.get(unit, 0) + 1


class _MemoryClaim(SettledOnce):
    def __init__(self, board: MemoryBoard, unit: Unit) -> None:
        super().__init__(unit)
        self._board = board

    def _finish(self, value: float, details: dict[str, Any]) -> bool:
        self._board.end(self.unit, value=value, details=details, failed=False)
        return True

    def _fail(self, reason: str) -> None:
        self._board.end(self.unit, value=None, details={}, failed=True)

    def _release(self) -> None:
        self._board.end(self.unit, value=None, details={}, failed=False)


def check_axes(axes: Axes) -> None:
    """Raises UserError unless every axis is (lowest, highest) of a number, or one or more names, each once."""
    for name, values in axes.items():
        texts = [isinstance(value, str) for value in values]
        if values and all(texts):
            good = len(set(values)) == len(values)
        else:
            good = len(values) == 2 and not any(texts) and -math.inf < float(values[0]) <= float(values[1]) < math.inf
        if not good:
            raise UserError(f"axis {name}: {values}: give the lowest and the highest number, or names, each once")


def check_setting(unit: Unit, axes: Axes) -> None:
    """Raises UserError where a unit's setting has a name that is no axis, or a value outside it."""
    for name, value in unit.setting:
        if name not in axes:
            raise UserError(f"{name} is none of the axes {', '.join(axes)}")
        allowed = axes[name]
        if isinstance(allowed[0], str):
            good = value in allowed
        else:
            good = not isinstance(value, str) and float(allowed[0]) <= value <= float(allowed[1])
        if not good:
            raise UserError(f"{name}={value} lies outside {tuple(allowed)}")


def open_board(
    storage: str | Path | None,
    name: str,
    *,
    description: Mapping[str, Any],
    axes: Axes,
    lease_seconds: float = 60.0,
) -> Board:
    """The board of a search, opened or created.

    Args:
        storage: FILE.jsonl or FILE.log (journal, one machine or a shared folder with file locks); FILE.db or sqlite:///FILE (one
            machine); postgresql://USER:PASSWORD@HOST/DATABASE (many machines); None: in memory, for this process alone.
        name: of the search; a storage holds several.
        description: JSON-like: all that a value depends on, such as the reference's and the features' hash, the models, the axes. A
            search of the same name with another description is refused.
        axes: what a setting may hold.
        lease_seconds: a worker that gave no sign for so long is taken for dead. Signs are given three times as often.

    Raises:
        UserError: the storage cannot be used, or holds a search of this name with another description, naming what
            differs; Optuna, or the database's driver, is not installed.
    """
    check_axes(axes)
    if storage is None:
        return MemoryBoard(axes)
    try:
        from autoguidance.tune.optuna_board import OptunaBoard  # Optuna costs most of a second to import
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "optuna":
            raise
        raise UserError("a shared search needs Optuna; run `pip install optuna`") from None
    return OptunaBoard.open(storage, name, description=description, axes=axes, lease_seconds=lease_seconds)
