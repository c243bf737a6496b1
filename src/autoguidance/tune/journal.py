"""A journal file for Optuna that a killed writer, a full disk or a power cut cannot make unreadable.

Problem: Optuna's own `JournalFileBackend` refuses the whole file for every worker once one line is torn, and its lock, a
symbolic link, outlives a killed holder by half a minute. Here:

    append   under an exclusive `flock` on the journal itself, which the system frees when its holder dies. What follows
             the last newline is a torn line: nobody has ever taken it for a record, so it is cut off first. The record
             is on the disk (fsync) when the call returns.
    read     without a lock. What follows the last newline is left for later. Every line carries a checksum of itself:
             a reader that meets a line without a good one (it looked while a torn line was replaced, or a network file
             system showed it an old page) looks again under the lock, which writers respect; a line that is bad even
             then is bad for all and skipped by all.

A line is one record of Optuna with one more entry at its end, `"crc":"9ae0daaf"`, the CRC-32 of the line without it.
Optuna's own reader, and so optuna-dashboard, ignores it. Lines that Optuna's own writer made have none; they are taken
under the lock only, because the beginning of one record and the end of another may be good JSON.

Notation: record k (k = 0, 1, ...) begins at byte _offsets[k]; bad lines have no number.
"""

import errno
import fcntl
import json
import os
import re
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from optuna.storages.journal import BaseJournalBackend

from autoguidance.errors import UserError

_CRC = re.compile(rb',"crc":"([0-9a-f]{8})"}$')
_BEGIN = b'{"op_code":'
_LOCK_SECONDS = 30.0
_HEAD_BYTES = 256
_REPLACED = "it was replaced or cut while it was in use"


def encode_line(record: dict[str, Any]) -> bytes:
    """A record as a line with its checksum."""
    body = json.dumps(record, separators=(",", ":")).encode()[:-1]
    return body + b',"crc":"%08x"}\n' % zlib.crc32(body)


def decode_line(line: bytes, *, unchecked: bool = False) -> dict[str, Any] | None:
    """The record of a line without its newline; None where the line is damaged.

    Args:
        unchecked: also take a line without a checksum.
    """
    found = _CRC.search(line)
    if zlib.crc32(line[: found.start()]) != int(found[1], 16) if found else not unchecked:
        return None
    try:
        record = json.loads(line)
    except ValueError:
        return None
    if not isinstance(record, dict) or "op_code" not in record:
        return None
    if record.pop("crc", None) is not None and not found:
        return None
    return record


class TornJournal(BaseJournalBackend):
    """The journal as Optuna's storage wants it. One object per process, used by one thread at a time (as `JournalStorage` does).

    Args:
        path: the file; created where it does not exist.

    Raises:
        UserError: the file is there and is not a journal. Its content is left as it was.
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            start = os.pread(handle, 1 << 16, 0)
        finally:
            os.close(handle)
        if not start:  # new: its name has to be on the disk too
            folder = os.open(self.path.absolute().parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        first, newline, _ = start.partition(b"\n")
        known = (
            decode_line(first, unchecked=True) is not None if newline else first[: len(_BEGIN)] == _BEGIN[: len(first)]
        )
        if not known:
            raise UserError(f"{self.path} is not the journal of a search; choose another file")
        self._offsets = [0]
        self._head = b""  # of the records that were read: another journal begins otherwise

    def read_logs(self, log_number_from: int) -> list[dict[str, Any]]:
        """The records from this number on. Raises OSError where the file is gone, or is not the same any more."""
        handle = os.open(self.path, os.O_RDONLY)
        try:
            self._check_same(handle)
            # Optuna asks for what comes after the last record that it has, so normally this is the last offset.
            if log_number_from >= len(self._offsets):
                self._read(handle, len(self._offsets) - 1, log_number_from)
            records = self._read(handle, log_number_from, None)
            if len(self._head) < _HEAD_BYTES:
                self._head = os.pread(handle, min(_HEAD_BYTES, self._offsets[-1]), 0)
            return records
        finally:
            os.close(handle)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append records; they are on the disk when this returns. Raises OSError where that is not so."""
        content = b"".join(encode_line(log) for log in logs)
        with self._locked() as handle:
            end = _end_of_last_line(handle)
            if end < os.fstat(handle).st_size:
                os.ftruncate(handle, end)
            try:
                written = 0
                while written < len(content):
                    written += os.pwrite(handle, content[written:], end + written)
            except OSError:
                # A full disk. Whole lines stay, because a reader may have seen them; the caller may append them again.
                os.ftruncate(handle, _end_of_last_line(handle))
                raise
            os.fsync(handle)

    def _read(self, handle: int, start: int, stop: int | None) -> list[dict[str, Any]]:
        """Records start .. stop - 1 (None: all that there are), with their offsets noted."""
        if start >= len(self._offsets):
            return []
        begin = self._offsets[start]
        content = _read_from(handle, begin)
        lines = content.split(b"\n")[:-1]
        records = [decode_line(line) for line in lines]
        if None in records:
            with self._locked() as locked:
                content = _read_from(locked, begin)
            lines = content.split(b"\n")[:-1]
            records = [decode_line(line, unchecked=True) for line in lines]
        del self._offsets[start + 1 :]
        found, end = [], begin
        for line, record in zip(lines, records, strict=True):
            end += len(line) + 1
            if record is not None:
                found.append(record)
                self._offsets.append(end)
                if stop is not None and start + len(found) == stop:
                    return found
        self._offsets[-1] = end  # behind bad lines at the end, if there are any
        return found

    def _check_same(self, handle: int) -> None:
        if os.fstat(handle).st_size < self._offsets[-1] or os.pread(handle, len(self._head), 0) != self._head:
            raise FileNotFoundError(errno.ENOENT, _REPLACED, str(self.path))

    @contextmanager
    def _locked(self) -> Iterator[int]:
        """The journal, opened for reading and writing, alone."""
        handle = os.open(self.path, os.O_RDWR)
        try:
            deadline, pause = time.monotonic() + _LOCK_SECONDS, 0.001
            while True:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise TimeoutError(f"another process has held {self.path} for {_LOCK_SECONDS:g} s") from None
                time.sleep(pause)
                pause = min(2 * pause, 0.02)
            self._check_same(handle)
            if not os.path.samestat(os.fstat(handle), self.path.stat()):
                raise FileNotFoundError(errno.ENOENT, _REPLACED, str(self.path))
            yield handle
        finally:
            os.close(handle)  # and with it the lock


def _read_from(handle: int, offset: int) -> bytes:
    """All bytes from an offset to the present end."""
    parts = []
    while part := os.pread(handle, 1 << 24, offset):
        parts.append(part)
        offset += len(part)
    return b"".join(parts)


def _end_of_last_line(handle: int) -> int:
    """Where the last newline ends; 0 where there is none."""
    end = os.fstat(handle).st_size
    while end:
        begin = max(0, end - (1 << 16))
        place = os.pread(handle, end - begin, begin).rfind(b"\n")
        if place >= 0:
            return begin + place + 1
        end = begin
    return 0
