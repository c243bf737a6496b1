"""Downloads: whole or absent, continued after a break, and refused where the server gives another file."""

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from autoguidance.errors import UserError
from autoguidance.zoo.download import fetch

CONTENT = bytes(range(256)) * 4096  # 1 MiB


@dataclass
class Server:
    """What the server gives, and what it was asked."""

    content: bytes = CONTENT
    tag: str = '"one"'
    break_after: list[int] = field(default_factory=list)  # bytes sent before the connection ends, for the next answers
    status: int = 200
    location: str = ""
    ranges: list[str | None] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            state.ranges.append(wanted)
            if state.status != 200:
                self.send_response(state.status)
                if state.location:
                    self.send_header("Location", state.location)
                self.end_headers()
                return
            start = 0
            if wanted and self.headers.get("If-Range") == state.tag:
                start = int(wanted.removeprefix("bytes=").rstrip("-"))
            body = state.content[start:]
            self.send_response(206 if start else 200)
            self.send_header("ETag", state.tag)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: state.break_after.pop(0)] if state.break_after else body)

        def log_message(self, *arguments: Any) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{httpd.server_port}/file.bin"
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    yield state
    httpd.shutdown()
    httpd.server_close()


def test_whole_file(server: Server, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    digest = hashlib.sha256(CONTENT).hexdigest()
    path = fetch(server.url, tmp_path / "a" / "file", sha256=digest, progress=lambda *figures: seen.append(figures[:2]))
    assert path.read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_a_file_that_is_there_is_not_asked_for(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    assert fetch(server.url, tmp_path / "file").read_bytes() == b"mine"
    assert server.ranges == []
    with pytest.raises(UserError, match="SHA-256 differs"):
        fetch(server.url, tmp_path / "file", sha256="0" * 64)


def test_a_broken_connection_is_continued(server: Server, tmp_path: Path) -> None:
    server.break_after = [300_000, 200_000]
    assert fetch(server.url, tmp_path / "file", pause=0.01).read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=300000-", "bytes=500000-"]


def test_a_later_call_continues(server: Server, tmp_path: Path) -> None:
    server.break_after = [100_000] * 5
    with pytest.raises(UserError, match=r"after 500000 of 1048576 bytes.*continues"):
        fetch(server.url, tmp_path / "file", pause=0.001)
    assert not (tmp_path / "file").exists()
    assert fetch(server.url, tmp_path / "file").read_bytes() == CONTENT
    assert server.ranges[-1] == "bytes=500000-"


def test_a_file_that_changed_meanwhile_begins_anew(server: Server, tmp_path: Path) -> None:
    server.break_after = [100_000] * 5
    with pytest.raises(UserError):
        fetch(server.url, tmp_path / "file", pause=0.001)
    server.content, server.tag = CONTENT[::-1], '"two"'
    assert fetch(server.url, tmp_path / "file").read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize(
    ("settings", "arguments", "message"),
    [
        ({"status": 404}, {}, "answers 404.*check the name"),
        ({"status": 503}, {}, "answers 503.*run the same command again"),
        ({"status": 302, "location": "file:///etc/passwd"}, {}, "'file:///etc/passwd' is not allowed"),
        ({}, {"sha256": "0" * 64}, "SHA-256 differs"),
        ({}, {"size": 5}, "not the expected 5"),
    ],
)
def test_what_is_refused(
    server: Server, tmp_path: Path, settings: dict[str, Any], arguments: dict[str, Any], message: str
) -> None:
    for name, value in settings.items():
        setattr(server, name, value)
    with pytest.raises(UserError, match=message) as caught:
        fetch(server.url, tmp_path / "file", pause=0.001, **arguments)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "file").exists()


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/file", "nonsense"])
def test_only_http(url: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not an address"):
        fetch(url, tmp_path / "file")


def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot fetch.*refused"):
        fetch("http://127.0.0.1:9/file", tmp_path / "file", pause=0.001)
