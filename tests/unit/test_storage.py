"""Files are whole or absent, whatever happens while they are written."""

import errno
import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoguidance.errors import UserError
from autoguidance.storage import (
    Manifest,
    alone,
    append_json_line,
    atomic_path,
    make_folder,
    read_json,
    read_json_lines,
    sha256_file,
    write_bytes,
    write_json,
    write_text,
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_text(tmp_path / "a.txt", "old")
    return tmp_path / "a.txt"


def only(file: Path) -> bool:
    """Nothing but the file is in its folder: no temporary file was left."""
    return [path.name for path in file.parent.iterdir()] == [file.name]


def test_written_whole_and_readable_by_others(file: Path) -> None:
    assert file.read_text() == "old"
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    write_text(file, "néw")
    assert file.read_text(encoding="utf-8") == "néw"
    assert only(file)


def test_the_old_content_is_there_until_the_end(file: Path) -> None:
    with atomic_path(file) as temporary:
        temporary.write_text("half")
        assert file.read_text() == "old"
        assert temporary.parent == file.parent  # else the rename is not atomic
    assert file.read_text() == "half"


@pytest.mark.parametrize("error", [RuntimeError("bug"), KeyboardInterrupt(), UserError("mistake")])
def test_a_failing_writer_leaves_the_old_content(file: Path, error: BaseException) -> None:
    def write() -> None:
        with atomic_path(file) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(type(error)):
        write()
    assert file.read_text() == "old"
    assert only(file)


@pytest.mark.parametrize("call", ["fsync", "replace", "open"])
def test_a_full_disk_is_named_and_the_old_content_stays(file: Path, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        if call == "fsync":
            patch.setattr(os, "fsync", full)
        elif call == "replace":
            patch.setattr(Path, "replace", full)
        else:
            patch.setattr("tempfile.mkstemp", full)
        with pytest.raises(UserError, match=r"cannot write .*a\.txt: No space left on device; check"):
            write_bytes(file, b"new")
    assert file.read_text() == "old"
    assert only(file)


def test_a_killed_writer_leaves_the_old_content(file: Path) -> None:
    script = (
        "import os, signal, sys; from autoguidance.storage import atomic_path\n"
        "with atomic_path(sys.argv[1]) as t: t.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(file)], check=False)
    assert done.returncode == -9
    assert file.read_text() == "old"


def test_a_folder_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(UserError, match="cannot write"):
        write_text(tmp_path / "x", "text")
    write_text(tmp_path / "file", "text")
    for action in (lambda: make_folder(tmp_path / "file"), lambda: write_text(tmp_path / "file" / "a", "text")):
        with pytest.raises(UserError, match="cannot create the folder"):
            action()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir(mode=0o500)
    with pytest.raises(UserError, match="permission denied; choose another output folder"):
        make_folder(tmp_path / "x")


def test_json_round_trip_and_refusals(tmp_path: Path) -> None:
    content = {"a": [1, 2.5, None, "ü"], "b": {"c": True}}
    write_json(tmp_path / "a.json", content)
    assert read_json(tmp_path / "a.json") == content
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", {"a": float("nan")})
    assert read_json(tmp_path / "a.json") == content
    for name, text, message in (
        ("missing", None, "does not exist"),
        ("bad", b"{", "not valid JSON"),
        ("bytes", b"\xff\xfe", "not valid JSON"),
    ):
        if text is not None:
            (tmp_path / name).write_bytes(text)
        with pytest.raises(UserError, match=message):
            read_json(tmp_path / name)
    with pytest.raises(UserError, match="cannot read"):
        read_json(tmp_path)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.dictionaries(st.text(max_size=3), st.integers() | st.text(max_size=5)), max_size=5), st.data())
def test_journal_survives_a_cut_at_any_byte(
    tmp_path_factory: pytest.TempPathFactory, records: list[dict[str, Any]], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("journal") / "log.jsonl"
    for record in records:
        append_json_line(path, record)
    assert read_json_lines(path) == records
    content = path.read_bytes() if records else b""
    cut = data.draw(st.integers(0, len(content)))
    path.write_bytes(content[:cut])
    whole = content[:cut].count(b"\n")
    assert read_json_lines(path) == records[:whole]
    append_json_line(path, {"after": 1})
    assert read_json_lines(path) == [*records[:whole], {"after": 1}]


def test_journal_damaged_in_the_middle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"a": 1}\n{"a": \n{"a": 3}\n')
    with pytest.raises(UserError, match=r"log\.jsonl: line 2 is damaged"):
        read_json_lines(path)
    assert read_json_lines(tmp_path / "missing") == []


def test_journal_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log.jsonl"
    append_json_line(path, {"a": 1})

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match="No space left"):
            append_json_line(path, {"a": 2})
    assert read_json_lines(path)[0] == {"a": 1}


def test_manifest(tmp_path: Path) -> None:
    manifest = Manifest(tmp_path)
    assert manifest.names() == []
    for name in ("b/x.bin", "a.bin"):
        write_bytes(tmp_path / name, name.encode())
        manifest.commit(tmp_path / name)
    assert manifest.names() == ["a.bin", "b/x.bin"]
    assert manifest.verify("b/x.bin") == tmp_path / "b/x.bin"
    assert json.loads(manifest.path.read_text())["files"]["a.bin"] == sha256_file(tmp_path / "a.bin")

    write_bytes(tmp_path / "loose.bin", b"x")  # written, but the process died before the commit
    assert "loose.bin" not in manifest.names()
    with pytest.raises(UserError, match=r"loose\.bin is not a committed file"):
        manifest.verify("loose.bin")

    (tmp_path / "a.bin").write_bytes(b"changed")
    with pytest.raises(UserError, match=r"a\.bin is damaged: its SHA-256 differs"):
        manifest.verify("a.bin")
    (tmp_path / "a.bin").unlink()
    with pytest.raises(UserError, match=r"cannot read .*a\.bin"):
        manifest.verify("a.bin")

    write_bytes(tmp_path / "c.bin", b"c")
    manifest.commit(tmp_path / "c.bin", remove=("a.bin", "never there"))
    assert manifest.names() == ["b/x.bin", "c.bin"]
    manifest.path.write_text("[]")
    with pytest.raises(UserError, match="is not a manifest"):
        manifest.names()


def test_errors_are_one_line() -> None:
    assert str(UserError("a\n  b\tc")) == "a b c"
    assert isinstance(UserError("x"), ValueError)


def test_alone_refuses_or_waits(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    order = []
    with alone(lock, "busy"), pytest.raises(UserError, match=r"^busy$"), alone(lock, "busy"):
        pass
    with alone(lock, "busy"):  # free again

        def wait() -> None:
            with alone(lock, None):
                order.append("second")

        thread = threading.Thread(target=wait)
        thread.start()
        thread.join(0.2)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    with pytest.raises(UserError, match="cannot write"), alone(tmp_path / "absent" / ".lock", "busy"):
        pass
