"""The journal: nothing that was written whole is lost, and nothing torn is read, wherever a writer is stopped."""

import errno
import fcntl
import json
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import board_workers
import pytest
from optuna.storages.journal import JournalFileBackend

from autoguidance.errors import UserError
from autoguidance.tune import journal as module
from autoguidance.tune.journal import TornJournal, decode_line, encode_line

RECORDS = [{"op_code": 8, "worker_id": "w", "user_attr": {"a": number, "t": "é\n\"'" * number}} for number in range(6)]
AFTER = {"op_code": 4, "worker_id": "v", "study_id": 0}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    TornJournal(tmp_path / "search.jsonl").append_logs(RECORDS)
    return tmp_path / "search.jsonl"


def everything(path: Path) -> list[dict[str, Any]]:
    return TornJournal(path).read_logs(0)


def ends(content: bytes) -> list[int]:
    """Where lines end."""
    return [i + 1 for i, byte in enumerate(content) if byte == 0x0A]


def test_round_trip_from_any_number_on(path: Path) -> None:
    for first in range(len(RECORDS) + 1):
        fresh = TornJournal(path)
        assert fresh.read_logs(first) == RECORDS[first:]
        assert fresh.read_logs(0) == RECORDS  # and back again: a reader that stopped half way asks for earlier ones
    assert everything(path) == RECORDS
    assert fresh.read_logs(len(RECORDS) + 3) == []
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # no lock file


def test_reading_goes_on_where_it_was(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = TornJournal(path), TornJournal(path)
    assert reader.read_logs(0) == RECORDS
    size = path.stat().st_size
    for number in range(3):
        writer.append_logs([AFTER])
        read: list[tuple[int, int]] = []
        pread = os.pread

        def watched(handle: int, length: int, offset: int, read: Any = read, pread: Any = pread) -> bytes:
            content = pread(handle, length, offset)
            read.append((offset, len(content)))
            return content

        with monkeypatch.context() as patch:
            patch.setattr(os, "pread", watched)
            assert reader.read_logs(len(RECORDS) + number) == [AFTER]
        assert sum(length for offset, length in read if offset < size) <= 256  # of what is old, its beginning only
        size = path.stat().st_size


def test_a_cut_at_any_byte_loses_only_the_torn_line(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # 700 times: seconds
    content = path.read_bytes()
    for cut in range(len(content) + 1):
        path.write_bytes(content[:cut])
        whole = content[:cut].count(b"\n")
        reader, writer = TornJournal(path), TornJournal(path)
        assert reader.read_logs(0) == RECORDS[:whole]
        assert path.read_bytes() == content[:cut]  # readers change nothing
        writer.append_logs([AFTER])
        assert reader.read_logs(whole) == [AFTER]
        assert everything(path) == [*RECORDS[:whole], AFTER]
        assert path.read_bytes() == content[: ends(content[:cut])[-1] if whole else 0] + encode_line(AFTER)


@pytest.mark.parametrize("damage", [b"\0" * 40, b'{"op_code":8}\0', b"\xff", b"{" * 3000])
def test_a_damaged_line_is_skipped_by_all(path: Path, damage: bytes) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    early = TornJournal(path)
    assert early.read_logs(0) == RECORDS
    path.write_bytes(b"".join([*lines[:3], damage + b"\n", *lines[3:]]))
    reader = TornJournal(path)
    assert reader.read_logs(0) == RECORDS
    assert reader.read_logs(4) == RECORDS[4:]
    with path.open("ab") as file:
        file.write(damage + b"\n")
    assert reader.read_logs(6) == []
    TornJournal(path).append_logs([AFTER])
    assert reader.read_logs(6) == [AFTER]
    assert everything(path) == [*RECORDS, AFTER]


def test_any_changed_byte_is_noticed(path: Path) -> None:
    line = path.read_bytes().splitlines()[2]
    assert decode_line(line) == RECORDS[2]
    for place in range(len(line)):
        for change in (0x01, 0x80):
            changed = bytearray(line)
            changed[place] ^= change
            assert decode_line(bytes(changed)) is None


def test_a_mixture_of_two_lines_is_not_taken_for_a_record() -> None:
    """Records are much alike, so the beginning of one and the end of another make good JSON."""
    one, two = (
        encode_line({"op_code": 6, "worker_id": name, "trial_id": trial, "state": 1, "values": [value]})[:-1]
        for name, trial, value in (("abcdef", 12, 2.5), ("uvwxyz", 34, 7.25))
    )
    mixtures = {one[:cut] + two[cut:] for cut in range(len(one))} - {one, two}
    valid = [mixture for mixture in mixtures if b'"values"' in mixture and _is_json(mixture)]
    assert len(valid) > 10
    assert [mixture for mixture in mixtures if decode_line(mixture) is not None] == []
    assert decode_line(b'{"op_code":6}') is None
    assert decode_line(b'{"op_code":6}', unchecked=True) == {"op_code": 6}
    assert decode_line(b'{"op_code":6,"crc":"123"}', unchecked=True) is None


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def test_a_reader_that_sees_an_old_page_looks_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network file system can show zeros where another machine has just written."""
    reader, pread, calls = TornJournal(path), os.pread, 0

    def stale(handle: int, length: int, offset: int) -> bytes:
        nonlocal calls
        content = pread(handle, length, offset)
        calls += 1
        return content if calls > 2 else content[:200] + b"\0" * len(content[200:-1]) + content[-1:]

    monkeypatch.setattr(os, "pread", stale)
    assert reader.read_logs(0) == RECORDS


def test_what_optuna_wrote_and_what_optuna_reads(path: Path) -> None:
    """The dashboard, say, uses Optuna's own backend on the same file."""
    theirs = JournalFileBackend(str(path))
    assert [{k: v for k, v in r.items() if k != "crc"} for r in theirs.read_logs(0)] == RECORDS
    theirs.append_logs([AFTER])
    TornJournal(path).append_logs([AFTER])
    assert everything(path) == [*RECORDS, AFTER, AFTER]
    assert len(list(theirs.read_logs(0))) == 8


@pytest.mark.parametrize(
    "content", [b"a,b\n1,2\n", b'{"fd": 3.5}\n', b"[1]\n", b"\x80\x04pickle", b"{", b'{"op_cod', b"null"]
)
def test_other_files_are_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "notes.log"
    path.write_bytes(content)
    if b'{"op_code":'.startswith(content):  # what a killed first writer leaves
        TornJournal(path).append_logs([AFTER])
        assert everything(path) == [AFTER]
        return
    with pytest.raises(UserError, match=r"notes\.log is not the journal of a search; choose another file"):
        TornJournal(path)
    assert path.read_bytes() == content


def test_a_journal_that_is_replaced_or_cut_is_not_written_to(path: Path) -> None:
    content = path.read_bytes()
    for change in ("remove", "replace", "cut"):
        path.write_bytes(content)
        journal = TornJournal(path)
        assert journal.read_logs(0) == RECORDS
        if change == "cut":
            path.write_bytes(content[: ends(content)[2]])
        else:
            path.unlink()
        if change == "replace":
            (path.parent / "new").write_bytes(content[ends(content)[0] :] * 2)
            (path.parent / "new").rename(path)
        before = path.read_bytes() if path.exists() else None
        for action in (lambda j=journal: j.read_logs(6), lambda j=journal: j.append_logs([AFTER])):
            with pytest.raises(FileNotFoundError):
                action()
        assert (path.read_bytes() if path.exists() else None) == before


@pytest.mark.parametrize("written", [0, 1, 50, 400])
def test_a_full_disk_leaves_whole_lines_only(path: Path, written: int, monkeypatch: pytest.MonkeyPatch) -> None:
    content, pwrite = path.read_bytes(), os.pwrite
    journal = TornJournal(path)

    def full(handle: int, data: bytes, offset: int) -> int:
        if offset > len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(handle, data[:written], offset) if written else full(handle, data, offset + 1)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="No space left"):
            journal.append_logs([AFTER, {**AFTER, "filling": "x" * 1000}])
    assert path.read_bytes() == content + (encode_line(AFTER) if written == 400 else b"")
    journal.append_logs([AFTER])
    assert everything(path)[-1] == AFTER


def test_a_writer_waits_for_the_lock_and_says_when_it_is_never_free(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = TornJournal(path)
    with path.open("rb+") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        monkeypatch.setattr(module, "_LOCK_SECONDS", 0.1)
        with pytest.raises(TimeoutError, match="another process has held"):
            journal.append_logs([AFTER])
        assert journal.read_logs(0) == RECORDS  # readers do not wait
        monkeypatch.setattr(module, "_LOCK_SECONDS", 20.0)
        thread = threading.Thread(target=journal.append_logs, args=([AFTER],))
        thread.start()
        time.sleep(0.05)
        assert len(TornJournal(path).read_logs(0)) == 6
    thread.join(timeout=10)
    assert everything(path)[-1] == AFTER


def test_writers_that_are_killed_while_others_read_and_write(tmp_path: Path, start: Callable[..., Any]) -> None:
    path = tmp_path / "search.jsonl"
    reader = TornJournal(path)
    draw = random.Random(0)
    seen: list[dict[str, Any]] = []
    writers = [start(board_workers.append, str(path), 100_000) for _ in range(3)]
    kills, deadline = 0, time.monotonic() + 60
    while kills < 8 and time.monotonic() < deadline:
        time.sleep(draw.uniform(0.05, 0.3))
        seen += reader.read_logs(len(seen))
        if len(seen) > 50 * kills:
            victim = draw.randrange(len(writers))
            writers[victim].kill()
            writers[victim].join()
            writers[victim] = start(board_workers.append, str(path), 100_000)
            kills += 1
    for writer in writers:
        writer.kill()
        writer.join()
    # A line torn on purpose too: a kill seldom hits the microseconds of a write.
    with path.open("ab") as file:
        file.write(encode_line(AFTER)[:-5])
    TornJournal(path).append_logs([AFTER])
    seen += reader.read_logs(len(seen))
    assert kills == 8
    assert seen[-1] == AFTER
    assert seen == everything(path)
    numbers: dict[str, list[int]] = {}
    for record in seen[:-1]:
        numbers.setdefault(record["worker_id"], []).append(record["number"])
    assert all(found == list(range(len(found))) for found in numbers.values())  # of each writer, without a gap
    assert Counter(json.dumps(r) for r in seen).most_common(1)[0][1] == 1
