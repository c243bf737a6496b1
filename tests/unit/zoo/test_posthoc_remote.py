"""Post-hoc averages from a folder on a web server, with all that a server can do wrong."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from raw_snapshots import Interrupter, Killed, write_published

from autoguidance.cli import main
from autoguidance.errors import UserError
from autoguidance.models import read_model_info
from autoguidance.zoo import remote
from autoguidance.zoo.posthoc import plan_averages
from autoguidance.zoo.posthoc_state import RECORD, STATE
from autoguidance.zoo.posthoc_write import write_averages
from autoguidance.zoo.remote import list_remote

WIDTHS = (0.04, 0.07)
END = 4 * 2**25


@dataclass
class Server:
    """A web server of one folder.

    Attributes:
        folder: its files.
        listing: whether it shows a page with their names.
        cut: per name after how many bytes an answer ends.
        fail: per name the status to answer with.
        fail_get: the same for downloads only.
        no_head: refuses HEAD.
        gone: closes every connection without an answer.
        requests: (method, name, first byte) of each request.
    """

    folder: Path
    url: str = ""
    listing: bool = True
    cut: dict[str, int] = field(default_factory=dict)
    fail: dict[str, int] = field(default_factory=dict)
    fail_get: dict[str, int] = field(default_factory=dict)
    no_head: bool = False
    gone: bool = False
    requests: list[tuple[str, str, int]] = field(default_factory=list)

    def downloads(self) -> list[tuple[str, int]]:
        return [(name, start) for method, name, start in self.requests if method == "GET" and name]


def handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer("HEAD")

        def do_GET(self) -> None:
            self.answer("GET")

        def answer(self, method: str) -> None:
            name = self.path.removeprefix("/raw/edm2-img64-s").strip("/")
            start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
            server.requests.append((method, name, start))
            if server.gone:
                self.close_connection = True
                return
            failure = server.fail.get(name) or (server.fail_get.get(name) if method == "GET" else None)
            if method == "HEAD" and server.no_head:
                failure = 405
            path = server.folder / name
            if failure:
                self.send_error(failure)
            elif not name and server.listing:
                rows = "".join(f'<a href="{p.name}">{p.name[:20]}..&gt;</a>\n' for p in sorted(server.folder.iterdir()))
                self.send_page(f"<html><body><a href='../'>Parent</a>{rows}</body></html>".encode())
            elif not name or not path.is_file():
                self.send_error(403 if not name else 404)
            else:
                self.send_file(path, start, method)

        def send_page(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(body)

        def send_file(self, path: Path, start: int, method: str) -> None:
            content = path.read_bytes()
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(content) - start))
            self.send_header("ETag", f'"{path.stat().st_mtime_ns}"')
            self.end_headers()
            if method == "GET":
                self.wfile.write(content[start : server.cut.get(path.name, len(content))])

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler


@pytest.fixture
def server(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    folder = tmp_path / "served"
    folder.mkdir()
    for path in raw.iterdir():
        (folder / path.name).hardlink_to(path)
    state = Server(folder)
    web = ThreadingHTTPServer(("127.0.0.1", 0), handler(state))
    web.daemon_threads = True
    thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    state.url = f"http://127.0.0.1:{web.server_port}/raw/edm2-img64-s/"
    monkeypatch.setattr(remote, "PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(remote, "PUBLISHED_COUNT", 8)  # of 64: this server takes 8 ms for a question
    yield state
    web.shutdown()
    web.server_close()
    thread.join()


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("raw")
    write_published(path)
    return path


@pytest.fixture(scope="module")
def expected(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    return weights(write_averages(plan_averages(raw, WIDTHS), tmp_path_factory.mktemp("expected")))


def weights(paths: list[Path]) -> list[dict[str, object]]:
    """The files' tensors as bytes; metadata names where the snapshots came from."""
    from safetensors import deserialize

    return [
        {name: (entry["dtype"], bytes(entry["data"])) for name, entry in deserialize(p.read_bytes())} for p in paths
    ]


@pytest.mark.parametrize("listing", ["page", "names of published runs", "without HEAD"])
def test_a_folder_on_a_server_is_as_good_as_one_here(
    server: Server, expected: list[dict[str, object]], tmp_path: Path, listing: str
) -> None:
    server.listing, server.no_head = listing == "page", listing == "without HEAD"
    here: list[int] = []
    progress: list[tuple[int, int]] = []

    def watch(done: int, total: int, figures: dict[str, object]) -> None:
        progress.append((done, total))
        here.append(sum(1 for _ in (tmp_path / "out" / STATE / "fetched").glob("*.pkl")))

    plan = plan_averages(server.url, WIDTHS)
    assert not [name for name, _ in server.downloads() if listing != "without HEAD"]
    assert [s.profile for s in plan.snapshots] == [(t * 2**25, std) for t in range(1, 5) for std in (0.05, 0.1)]
    server.requests.clear()
    paths = write_averages(plan, tmp_path / "out", progress=watch)
    assert weights(paths) == expected
    assert server.downloads() == [(s.name, 0) for s in plan.snapshots]  # each once, whatever the number of widths
    assert max(here) <= 2
    assert progress[-1] == (plan.size_bytes, plan.size_bytes)
    assert [done for done, _ in progress] == sorted(done for done, _ in progress)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted([RECORD, *(p.name for p in paths)])
    info = read_model_info(paths[0])
    assert (info.licence, info.num_images) == ("CC-BY-NC-SA-4.0", END)
    assert info.provenance["posthoc"]["origin"] == server.url


def test_the_folders_own_name_as_prefix(server: Server) -> None:
    server.listing = False
    for path in list(server.folder.iterdir()):
        path.rename(path.with_name(path.name.replace("network-snapshot", "edm2-img64-s")))
    found, missing = list_remote(server.url)
    assert (len(found), missing) == (8, [])


def test_names_given_in_a_file(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server.listing = False
    for path in list(server.folder.iterdir()):
        path.rename(path.with_name(path.name.replace("network-snapshot", "mine")))
    arguments = ["ema", server.url, "--std", "0.07", "--out", str(tmp_path / "out")]
    assert main(arguments) == 2
    assert "give the names with --list" in capsys.readouterr().err
    (tmp_path / "names.txt").write_text("\n".join(f"x/{p.name}" for p in server.folder.iterdir()))
    assert main([*arguments, "--list", str(tmp_path / "names.txt")]) == 0
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == 1
    (tmp_path / "names.txt").write_text("../../etc/passwd.pkl\n")
    assert main([*arguments, "--list", str(tmp_path / "names.txt")]) == 2
    assert "'passwd.pkl' is not a snapshot's name" in capsys.readouterr().err


def test_snapshots_that_a_published_run_should_have(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.listing = False
    gap = "network-snapshot-0067108-0.050.pkl"
    (server.folder / gap).unlink()
    plan = plan_averages(server.url, [0.07])
    assert plan.missing == (gap,)
    assert len(plan.snapshots) == 7
    assert plan_averages(server.url, [0.07], 2**25).missing == ()  # lies after the wanted time
    assert main(["ema", server.url, "--std", "0.07", "--dry-run"]) == 0
    assert f"1 snapshots of a published run are not there, first {gap}" in capsys.readouterr().err


def test_kept_snapshots_are_a_folder_of_snapshots(
    server: Server, expected: list[dict[str, object]], tmp_path: Path
) -> None:
    plan = plan_averages(server.url, WIDTHS)
    assert weights(write_averages(plan, tmp_path / "out", keep=tmp_path / "kept")) == expected
    assert sorted(p.name for p in (tmp_path / "kept").iterdir()) == [s.name for s in plan.snapshots]
    server.gone = True
    assert weights(write_averages(plan, tmp_path / "again", keep=tmp_path / "kept")) == expected
    assert weights(write_averages(plan_averages(tmp_path / "kept", WIDTHS), tmp_path / "local")) == expected


def test_a_connection_that_ends_half_way_is_taken_up_again(
    server: Server, expected: list[dict[str, object]], tmp_path: Path
) -> None:
    plan = plan_averages(server.url, WIDTHS)
    victim = plan.snapshots[5].name
    server.cut[victim] = 1000
    with pytest.raises(UserError, match=f"cannot fetch .*{victim}") as caught:
        write_averages(plan, tmp_path / "out")
    assert "\n" not in str(caught.value)
    server.cut.clear()
    server.requests.clear()
    assert weights(write_averages(plan_averages(server.url, WIDTHS), tmp_path / "out")) == expected
    # The four snapshots of the times before are in the saved sums, the sixth is continued at the byte where it stopped.
    assert server.downloads() == [(victim, 1000), (plan.snapshots[6].name, 0), (plan.snapshots[7].name, 0)]


def test_a_server_that_dies(server: Server, expected: list[dict[str, object]], tmp_path: Path) -> None:
    plan = plan_averages(server.url, WIDTHS)

    def dies(done: int, total: int, figures: dict[str, object]) -> None:
        server.gone = done > total * 0.6

    with pytest.raises(UserError, match="cannot fetch"):
        write_averages(plan, tmp_path / "out", progress=dies)
    with pytest.raises(UserError, match="cannot reach"):
        plan_averages(server.url, WIDTHS)
    server.gone = False
    server.requests.clear()
    assert weights(write_averages(plan_averages(server.url, WIDTHS), tmp_path / "out")) == expected
    assert plan.snapshots[3].name not in [name for name, _ in server.downloads()]


def test_killed_while_fetching(server: Server, expected: list[dict[str, object]], tmp_path: Path) -> None:
    plan = plan_averages(server.url, WIDTHS)
    with pytest.raises(Killed):
        write_averages(plan, tmp_path / "out", progress=Interrupter(6))
    assert weights(write_averages(plan_averages(server.url, WIDTHS), tmp_path / "out")) == expected


def test_a_truncated_file_is_named_and_fetched_again(
    server: Server, raw: Path, expected: list[dict[str, object]], tmp_path: Path
) -> None:
    """The file on the server is itself cut off: whole as a download, but not a network."""
    victim = plan_averages(server.url, WIDTHS).snapshots[4].name
    (server.folder / victim).unlink()
    (server.folder / victim).write_bytes((raw / victim).read_bytes()[:-5000])
    with pytest.raises(UserError, match=rf"{victim}.*the same command fetches it again") as caught:
        write_averages(plan_averages(server.url, WIDTHS), tmp_path / "out")
    assert "\n" not in str(caught.value)
    (server.folder / victim).write_bytes((raw / victim).read_bytes())  # mended there: other size, other version
    assert weights(write_averages(plan_averages(server.url, WIDTHS), tmp_path / "out")) == expected


def test_a_file_that_is_missing(server: Server, tmp_path: Path) -> None:
    victim = "network-snapshot-0067108-0.050.pkl"
    server.fail[victim] = 404
    with pytest.raises(UserError, match=rf"{victim} is listed but not there \(1 of 8 files\)"):
        plan_averages(server.url, WIDTHS)
    server.fail.clear()
    plan = plan_averages(server.url, WIDTHS)
    server.fail_get[victim] = 404  # goes away after it was listed
    with pytest.raises(UserError, match=rf"{victim}: the server answers 404"):
        write_averages(plan, tmp_path / "out")


def test_a_file_that_changes_between_two_calls(server: Server, tmp_path: Path) -> None:
    plan = plan_averages(server.url, WIDTHS)
    with pytest.raises(Killed):
        write_averages(plan, tmp_path / "out", progress=Interrupter(12), save_seconds=0)
    victim = server.folder / plan.snapshots[0].name
    content = victim.read_bytes()
    victim.unlink()
    victim.write_bytes(content)  # the same bytes with another date: the server gives no better word on it
    notices: list[str] = []
    server.requests.clear()
    write_averages(plan_averages(server.url, WIDTHS), tmp_path / "out", notify=notices.append)
    assert notices == [f"the unfinished work in {tmp_path / 'out' / STATE} is of other snapshots: starting over"]
    assert len(server.downloads()) == 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gone": True}, "cannot reach"),
        ({"fail": {"": 500}}, "cannot reach .* answers 500"),
        ({"fail": {"": 401}}, "cannot reach .* answers 401"),
    ],
)
def test_servers_that_do_not_answer(server: Server, change: dict[str, object], message: str) -> None:
    for name, value in change.items():
        setattr(server, name, value)
    with pytest.raises(UserError, match=message) as caught:
        plan_averages(server.url, WIDTHS)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_not_there(server: Server) -> None:
    with pytest.raises(UserError, match="no snapshots there"):
        plan_averages(server.url.replace("img64", "img65"), WIDTHS)
    for url in ("http://", "http://[", "http://127.0.0.1:port/x"):
        with pytest.raises(UserError):
            plan_averages(url, WIDTHS)


def test_an_address_needs_a_place(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ema", server.url, "--std", "0.07"]) == 2
    assert "--out is missing" in capsys.readouterr().err
    assert server.requests == []
