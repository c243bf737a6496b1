"""Whether the worker that holds a claim is still alive.

Problem: a worker that was killed cannot say so, and the clocks of two machines do not agree. A living worker counts a
number up, its beat, a few times per lease. Who looks on notes when, by its own monotonic clock, it first saw the
present beat; when that was more than a lease ago, the holder is taken for dead. No clock is compared with another's, and
a worker that looks rarely only takes longer.

A process on the same machine can be asked directly: the claim names the kernel's boot id with the process namespace,
the process id, and when that process started (ids are used again). Containers and other machines differ in the first.

Reference: Gray and Cheriton 1989, "Leases: an efficient fault-tolerant mechanism for distributed file cache consistency".
"""

import os
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

_PROC = Path("/proc")
_DEAD_STATES = "ZX"  # killed, and its parent has not asked yet


@dataclass(frozen=True, kw_only=True)
class Owner:
    """The process that holds a claim.

    Attributes:
        host: name of the machine, for people.
        place: boot id and process namespace, within which `pid` means something; "" where the system does not tell.
        pid: process id.
        started: when the process started, in the kernel's ticks; -1: unknown.
    """

    host: str
    place: str
    pid: int
    started: int

    @classmethod
    def current(cls) -> Self:
        """This process."""
        pid = os.getpid()
        started = _process(pid)
        return cls(host=socket.gethostname(), place=_place(), pid=pid, started=started[1] if started else -1)

    @classmethod
    def from_json(cls, record: Any) -> Self | None:
        """The inverse of `to_json`; None for anything else."""
        try:
            owner = cls(**record)
        except TypeError:
            return None
        texts = isinstance(owner.host, str) and isinstance(owner.place, str)
        return owner if texts and isinstance(owner.pid, int) and isinstance(owner.started, int) else None

    def to_json(self) -> dict[str, Any]:
        """JSON-like."""
        return asdict(self)

    def is_gone(self) -> bool:
        """Whether the process is known to have ended. False where that cannot be seen from here."""
        if not self.place or self.place != _place() or self.started < 0 or self.pid <= 0:
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:
            return False  # another user's: it is there
        now = _process(self.pid)
        return now is not None and (now[0] in _DEAD_STATES or now[1] != self.started)


def _place() -> str:
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {(_PROC / 'self/ns/pid').readlink()}"
    except OSError:
        return ""


def _process(pid: int) -> tuple[str, int] | None:
    """(state, start time in ticks) of a process; None where the system does not tell."""
    try:
        # "pid (any name) state ppid ...": the start time is the 22nd field, the 20th after the name.
        fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
        return fields[0], int(fields[19])
    except (OSError, ValueError, IndexError):
        return None


class LeaseWatch:
    """When each beat was first seen.

    Args:
        clock: in seconds; need not run while the machine sleeps.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: dict[int, tuple[int, float]] = {}

    def age(self, number: int, beat: int) -> float:
        """Seconds since this trial was first seen with this beat."""
        now = self._clock()
        known = self._seen.get(number)
        if known is None or known[0] != beat:
            self._seen[number] = (beat, now)
            return 0.0
        return now - known[1]

    def keep(self, numbers: Iterable[int]) -> None:
        """Forget all other trials."""
        wanted = set(numbers)
        self._seen = {number: seen for number, seen in self._seen.items() if number in wanted}
