"""A search that several processes and machines share, as an Optuna study: one trial is one unit of work.

Optuna keeps the trials and hands out their numbers; which unit is next is decided elsewhere, so no sampler of Optuna's
runs. A trial's parameters are the setting, its value the distance, so that `study.best_trial` and optuna-dashboard mean
what they say. Beside that a trial carries user attributes:

    first_seed, num_images, claim (a token of the claim), owner (process), lease_seconds    written when it is created
    beat                                                                                  counted up while it runs
    details                                                                               of a finished one
    outcome: "withdrawn" | "released" | "expired" | "failed", reason                          of one in state FAIL

Claiming. A worker creates its trial, in state RUNNING and with all of the above, in one operation, then reads all trials.
If the unit is finished, or a RUNNING trial with a lower number holds it, it withdraws. Numbers are given in the order of
creation, and who reads after creating sees all lower ones, so of any number of workers exactly one stays.

Finishing. A trial goes from RUNNING to COMPLETE or FAIL once, and the storage decides which of two that try is first (the
journal by the order of lines, the databases by a lock). So a claim cannot both be finished and be declared expired, and a
unit has at most one COMPLETE trial. A worker whose claim was declared expired, because it or its network slept, and that
is alive after all, claims its unit anew when it finishes: if nobody holds or has finished it, its result counts, once.

Expiry. See `leases`. Every worker looks while it reads the state, and while it renews its own claim.
"""

import json
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState, create_trial

from autoguidance.errors import UserError
from autoguidance.tune.board import Axes, Finished, SettledOnce, State, Unit, check_axes, check_setting
from autoguidance.tune.leases import LeaseWatch, Owner
from autoguidance.tune.storages import PATIENCE_SECONDS, Store, open_store, quiet

_DESCRIPTION = "autoguidance"
_LIVE = (TrialState.RUNNING, TrialState.COMPLETE)
_GOODBYE_SECONDS = 10.0
_MOST_DIFFERENCES = 3


class OptunaBoard:
    """A board in an Optuna storage. Make it by `OptunaBoard.open`, or `autoguidance.tune.open_board`."""

    def __init__(
        self, store: Store, study: optuna.Study, axes: Axes, lease_seconds: float, clock: Callable[[], float]
    ) -> None:
        self.store = store
        self.lease_seconds = lease_seconds
        self._study = study
        self._study_id = store.call(store.storage.get_study_id_from_name, study.study_name)
        self._axes = axes
        self._distributions = {name: _distribution(values) for name, values in axes.items()}
        self._owner = Owner.current()
        self._lock = threading.Lock()
        self._watch = LeaseWatch(clock)
        self._held: set[str] = set()
        self._finished: dict[int, Finished] = {}
        self._ended: dict[int, tuple[str, Unit]] = {}

    @classmethod
    def open(
        cls,
        storage: str | Path,
        name: str,
        *,
        description: Mapping[str, Any],
        axes: Axes,
        lease_seconds: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> Self:
        """Open or create a study.

        Args:
            storage, name, description, axes, lease_seconds: see `autoguidance.tune.open_board`.
            clock: by which leases of others are judged, in seconds.
            patience_seconds: how long an operation is tried again while the storage is out of order.

        Raises: UserError as `open_board`.
        """
        check_axes(axes)
        if not lease_seconds > 0:
            raise UserError(f"a lease of {lease_seconds} seconds: give a positive number")
        if not name:
            raise UserError("the search has no name; give one")
        store = open_store(storage, patience_seconds=patience_seconds)
        with quiet():
            # The sampler is never asked; the default one would be another import and another random state.
            sampler = optuna.samplers.RandomSampler()
            study = store.call(
                lambda: optuna.create_study(
                    study_name=name, storage=store.storage, direction="minimize", sampler=sampler, load_if_exists=True
                )
            )
        board = cls(store, study, axes, lease_seconds, clock)
        board._describe({**description, "axes": {axis: list(values) for axis, values in axes.items()}})
        return board

    def state(self) -> State:
        """See `Board.state`."""
        trials = self._trials()
        if self._expire(trials):
            trials = self._trials()
        finished: dict[Unit, tuple[Any, Finished]] = {}
        pending: dict[Unit, None] = {}
        ended: dict[str, Counter[Unit]] = {"failed": Counter(), "expired": Counter()}
        for trial in trials:
            if trial.state == TrialState.COMPLETE:
                result = self._result(trial)
                if result is not None:
                    finished.setdefault(result.unit, (trial.datetime_complete, result))
            elif trial.state == TrialState.RUNNING:
                unit = _unit(trial)
                if unit is not None:
                    pending[unit] = None
            else:
                outcome, unit = self._end(trial)
                if outcome in ended and unit is not None:
                    ended[outcome][unit] += 1
        order = sorted(finished.values(), key=lambda item: (item[0], item[1].number))
        return State(
            finished=tuple(result for _, result in order),
            pending=tuple(unit for unit in pending if unit not in finished),
            failed=dict(ended["failed"]),
            expired=dict(ended["expired"]),
        )

    def claim(self, unit: Unit) -> "OptunaClaim | None":
        """See `Board.claim`."""
        check_setting(unit, self._axes)
        state = self.state()
        if unit in state.pending or any(unit == result.unit for result in state.finished):
            return None
        token = uuid.uuid4().hex
        self._held.add(token)
        try:
            self._create(unit, token)
            number = self._decide(unit, token)
        except BaseException:  # also Ctrl-C: the trial may be there already
            self._held.discard(token)
            self._abandon(token)
            raise
        if number is None:
            self._held.discard(token)
            return None
        trial_id = self.store.call(self.store.storage.get_trial_id_from_study_id_trial_number, self._study_id, number)
        return OptunaClaim(self, unit, token, number, trial_id)

    def close(self) -> None:
        """See `Board.close`."""
        self.store.close()

    # For claims

    def look(self, patience: float, stop: threading.Event) -> None:
        """End the claims of vanished workers (called in the background by a claim)."""
        trials = self.store.call(self._study.get_trials, False, patience=patience, stop=stop)
        self._expire(trials)

    def let_go(self, token: str) -> None:
        """The claim is settled: its trial, if it is still running, is nobody's."""
        self._held.discard(token)

    def end(self, number: int, outcome: str, reason: str = "", patience: float | None = None) -> None:
        """Set a trial to FAIL; nothing where it has ended already."""
        storage, call = self.store.storage, self.store.call
        trial_id = call(storage.get_trial_id_from_study_id_trial_number, self._study_id, number, patience=patience)
        try:
            if reason:
                call(storage.set_trial_user_attr, trial_id, "reason", reason[:2000], patience=patience)
            call(storage.set_trial_user_attr, trial_id, "outcome", outcome, patience=patience)
            call(storage.set_trial_state_values, trial_id, TrialState.FAIL, patience=patience)
        except UpdateFinishedTrialError:
            pass

    # The study

    def _trials(self) -> list[FrozenTrial]:
        return self.store.call(self._study.get_trials, False)

    def _describe(self, description: Mapping[str, Any]) -> None:
        wanted = json.loads(json.dumps(description, allow_nan=False, sort_keys=True))
        title = f"the search '{self._study.study_name}' in {self.store.title}"
        remedy = "give the same options, or another name or --storage"
        stored = self.store.call(lambda: self._study.user_attrs).get(_DESCRIPTION)
        if stored is None:
            if self._trials():
                raise UserError(f"{title} was not made by this program; {remedy}")
            self.store.call(self._study.set_user_attr, _DESCRIPTION, wanted)
            stored = self.store.call(lambda: self._study.user_attrs).get(_DESCRIPTION)  # whoever wrote last
        different = list(_differences(stored, wanted))
        if different:
            shown = "; ".join(different[:_MOST_DIFFERENCES])
            more = f"; and {len(different) - _MOST_DIFFERENCES} more" if len(different) > _MOST_DIFFERENCES else ""
            raise UserError(f"{title} is another one (there, now): {shown}{more}; {remedy}")

    def _create(self, unit: Unit, token: str) -> None:
        attributes = {
            "first_seed": unit.first_seed,
            "num_images": unit.num_images,
            "claim": token,
            "owner": self._owner.to_json(),
            "lease_seconds": self.lease_seconds,
            "beat": 0,
        }
        trial = create_trial(
            state=TrialState.RUNNING,
            params=unit.values,
            distributions={name: self._distributions[name] for name in unit.values},
            user_attrs=attributes,
        )
        self.store.call(self.store.storage.create_new_trial, self._study_id, trial)

    def _decide(self, unit: Unit, token: str) -> int | None:
        """The number of the trial of this claim; None, and it is withdrawn, where another is first."""
        # The token, not the number that was returned, says which is ours: an operation that was tried again because its
        # answer was lost has made two.
        live = [trial for trial in self._trials() if trial.state in _LIVE and _unit(trial) == unit]
        own = [t.number for t in live if t.user_attrs["claim"] == token and t.state == TrialState.RUNNING]
        others = [t for t in live if t.user_attrs["claim"] != token]
        if not own:
            return None  # it took so long that somebody declared it expired
        first = min(own)
        beaten = any(t.state == TrialState.COMPLETE or t.number < first for t in others)
        for number in own:
            if beaten or number != first:
                self.end(number, "withdrawn")
        return None if beaten else first

    def _abandon(self, token: str) -> None:
        try:
            trials = self.store.call(self._study.get_trials, False, patience=_GOODBYE_SECONDS)
            for trial in trials:
                if trial.state == TrialState.RUNNING and trial.user_attrs.get("claim") == token:
                    self.end(trial.number, "released", patience=_GOODBYE_SECONDS)
        except UserError:
            pass  # the first error is the one to see; the lease ends it

    def _expire(self, trials: Iterable[FrozenTrial]) -> bool:
        """End the claims of vanished workers; whether there were any."""
        running = [t for t in trials if t.state == TrialState.RUNNING and _unit(t) is not None]
        with self._lock:
            self._watch.keep(trial.number for trial in running)
            gone = [trial for trial in running if self._is_gone(trial)]
        for trial in gone:
            self.end(trial.number, "expired")
        return bool(gone)

    def _is_gone(self, trial: FrozenTrial) -> bool:
        attributes = trial.user_attrs
        if attributes.get("claim") in self._held:
            return False
        beat, lease = attributes.get("beat"), attributes.get("lease_seconds")
        age = self._watch.age(trial.number, beat if isinstance(beat, int) else 0)
        owner = Owner.from_json(attributes.get("owner"))
        if owner is not None and owner.is_gone():
            return True
        return age > (lease if isinstance(lease, (int, float)) and lease > 0 else self.lease_seconds)

    def _result(self, trial: FrozenTrial) -> Finished | None:
        if trial.number not in self._finished:
            unit, details = _unit(trial), trial.user_attrs.get("details")
            if unit is None or trial.value is None:
                return None
            known = details if isinstance(details, dict) else {}
            self._finished[trial.number] = Finished(unit, trial.value, known, trial.number)
        return self._finished[trial.number]

    def _end(self, trial: FrozenTrial) -> tuple[str, Unit | None]:
        if trial.state != TrialState.FAIL:
            return "", None
        if trial.number not in self._ended:
            unit = _unit(trial)
            if unit is None:
                return "", None
            self._ended[trial.number] = (str(trial.user_attrs.get("outcome", "")), unit)
        return self._ended[trial.number]


class OptunaClaim(SettledOnce):
    """A claim on one unit. See `Claim`."""

    def __init__(self, board: OptunaBoard, unit: Unit, token: str, number: int, trial_id: int) -> None:
        super().__init__(unit)
        self.number = number
        self._board = board
        self._token = token
        self._trial_id = trial_id
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def renew(self, beat: int, patience: float) -> bool:
        """Give a sign of life. False: the claim has ended."""
        storage = self._board.store.storage
        try:
            self._board.store.call(
                storage.set_trial_user_attr, self._trial_id, "beat", beat, patience=patience, stop=self._stop
            )
        except UpdateFinishedTrialError:
            return False
        return True

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._keep, name=f"claim {self.number}", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            super().__exit__(kind, error, trace)
        finally:
            self._end_keeping()

    def _keep(self) -> None:
        interval = self._board.lease_seconds / 3
        beat = 0
        try:
            while not self._stop.wait(interval):
                beat += 1
                try:
                    if not self.renew(beat, interval):
                        return  # finish() will find out
                    self._board.look(interval, self._stop)
                except UserError:
                    continue  # out of order for longer than that: the next beat may get through
        finally:
            self._board.store.leave_thread()

    def _end_keeping(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=1.0)
        self._board.let_go(self._token)

    def _finish(self, value: float, details: dict[str, Any]) -> bool:
        try:
            return self._write(value, details)
        finally:
            self._end_keeping()

    def _write(self, value: float, details: dict[str, Any]) -> bool:
        storage, call = self._board.store.storage, self._board.store.call
        try:
            call(storage.set_trial_user_attr, self._trial_id, "details", details)
            call(storage.set_trial_intermediate_value, self._trial_id, self.unit.num_images, value)
            call(storage.set_trial_state_values, self._trial_id, TrialState.COMPLETE, [value])
            return True
        except UpdateFinishedTrialError:
            pass
        if call(storage.get_trial, self._trial_id).state == TrialState.COMPLETE:
            return True  # written by an earlier try, whose answer was lost
        again = self._board.claim(self.unit)  # declared expired, but alive: counts if nobody else has the unit
        return again is not None and again.finish(value, details)

    def _fail(self, reason: str) -> None:
        self._give_up("failed", reason, None)

    def _release(self) -> None:
        self._give_up("released", "", _GOODBYE_SECONDS)

    def _give_up(self, outcome: str, reason: str, patience: float | None) -> None:
        try:
            self._board.end(self.number, outcome, reason, patience)
        finally:
            self._end_keeping()


def _distribution(values: Any) -> BaseDistribution:
    if isinstance(values[0], str):
        return CategoricalDistribution(tuple(values))
    return FloatDistribution(float(values[0]), float(values[1]))


def _unit(trial: FrozenTrial) -> Unit | None:
    """The unit of a trial; None for trials that are not of this program (enqueued by somebody, for instance)."""
    first_seed, num_images = trial.user_attrs.get("first_seed"), trial.user_attrs.get("num_images")
    if not isinstance(first_seed, int) or not isinstance(num_images, int) or "claim" not in trial.user_attrs:
        return None
    try:
        return Unit.of(trial.params, first_seed=first_seed, num_images=num_images)
    except (UserError, TypeError, ValueError):
        return None


def _differences(there: Any, now: Any, path: str = "") -> Iterable[str]:
    """Entries that differ between two JSON-like values, as `name.name there, now`."""
    if isinstance(there, dict) and isinstance(now, dict):
        for name in sorted({*there, *now}):
            yield from _differences(there.get(name), now.get(name), f"{path}.{name}" if path else name)
    elif there != now:
        yield f"{path} {_short(there)}, {_short(now)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:28]}…{text[-28:]}"
