"""No file makes the reader of published EDM2 files run code, take long, take much memory, or fail in any way but one line.

Every file of the catalogue is read in a child process that watches itself (support/audited_reader.py).
"""

import collections
from collections.abc import Mapping
from pathlib import Path

import opcodes as op
import pytest
from audited_reader import ALLOWANCE, SECONDS, Report, examine
from edm2_files import Raw, dumps, network_objects, vae_encoder
from hostile_files import Case, catalogue, controls
from hostile_parts import CONFIG, Scene, large_tensor, random_weights, write

HOSTILE = {f"{case.kind}: {case.name}": case for case in catalogue()}
KINDS = sorted({case.kind for case in HOSTILE.values()})
PARTS = 6  # a child process takes seconds to start, so it reads several kinds; and the workers of pytest-xdist share the parts
CONTROLS = {case.name: case for case in controls()}


Reports = dict[str, tuple[Path, Report]]


def read_all(folder: Path, cases: Mapping[str, Case], reader: str | None = None) -> Reports:
    """Path and report per case."""
    scene = Scene(folder)
    paths = {}
    for index, (name, case) in enumerate(cases.items()):
        paths[name] = write(folder / f"{index:04d}{case.suffix}", case.build(scene))
    reports = examine(list(paths.values()), [reader or case.reader for case in cases.values()], folder=folder)
    for path in paths.values():
        path.unlink()
    return {name: (path, report) for (name, path), report in zip(paths.items(), reports, strict=True)}


@pytest.fixture(scope="module")
def harmless(tmp_path_factory: pytest.TempPathFactory) -> Reports:
    return read_all(tmp_path_factory.mktemp("harmless"), CONTROLS)


def check_conduct(report: Report) -> None:
    """What holds for every file, good or bad."""
    assert not report.outcome.startswith("died"), report.message
    assert not report.canary, "the canary is there: a file ran code"
    assert report.events == ()
    assert report.seconds < SECONDS
    assert report.peak_bytes < report.file_bytes + ALLOWANCE


def test_there_are_enough_files_and_kinds() -> None:
    kinds = collections.Counter(case.kind for case in HOSTILE.values())
    assert len(HOSTILE) == len(catalogue()) > 600
    assert len(kinds) >= 25


@pytest.mark.parametrize("name", CONTROLS)
def test_harmless_twin_is_read(name: str, harmless: Reports) -> None:
    _, report = harmless[name]
    assert report.outcome == "read", report.message
    check_conduct(report)


def fault(name: str, path: Path, report: Report) -> str:
    """What is wrong with how a hostile file was refused; "" if nothing."""
    try:
        check_conduct(report)
        assert report.user_error, f"{report.outcome}: {report.message}"
        assert str(path) in report.message
        reason = report.message.replace(str(path), "")
        assert 15 < len(reason) < 500
        assert report.message.isascii()
        assert report.message.isprintable()  # one line, and nothing that drives a terminal
        assert HOSTILE[name].says in reason.lower()
    except AssertionError as error:
        return f"{name}: {error}\n{report}"
    return ""


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_hostile_files_are_refused(part: int, tmp_path: Path) -> None:
    kinds = KINDS[part::PARTS]
    reports = read_all(tmp_path, {name: case for name, case in HOSTILE.items() if case.kind in kinds})
    faults = [text for name, (path, report) in reports.items() if (text := fault(name, path, report))]
    assert not faults, "\n\n".join(faults)


@pytest.mark.parametrize(("kind", "itemsize"), [("HalfStorage", 2), ("FloatStorage", 4)])
def test_a_network_with_a_large_tensor_is_frugal(kind: str, itemsize: int, tmp_path: Path) -> None:
    """64 million elements in one tensor, as the largest published networks have: checking them must not copy them, and a network
    is in memory once (beside the file)."""
    config = {**CONFIG, "model_channels": 64, "channels_per_head": 64}
    top = network_objects({**config, "label_dim": 1_000_000}, random_weights({**config, "label_dim": 1}), source="")
    top["encoder"] = vae_encoder()
    label = top["ema"].state["_modules"]["unet"].state["_modules"]["emb_label"]
    label.state["_parameters"]["weight"] = Raw(large_tensor(64, 1_000_000, kind=kind, itemsize=itemsize))
    path = write(tmp_path / "large.pkl", dumps(top, edited=True))
    small = write(tmp_path / "small.pkl", Scene(tmp_path).network())
    _, read, assembled = examine([small, path, path], ["assemble", "network", "assemble"], folder=tmp_path)
    for report in (read, assembled):
        assert report.outcome == "read", report.message
        assert report.detail["elements"] > 64_000_000
    check_conduct(read)
    widened = 4 * assembled.detail["elements"]
    assert assembled.peak_bytes < assembled.file_bytes + widened + (64 << 20)


# A reader that trusts the file: the same watching must then see what the file does. (Not through NEWOBJ, which calls no __init__.)
LIVE = {
    "call of a name that runs code: os.system": ("os.system", True),
    "call of a name that runs code: builtins.eval": ("exec", True),
    "call of a name that runs code: builtins.exec": ("exec", True),
    "call of a name that runs code: subprocess.call": ("subprocess.Popen", False),
    "call of a name that reaches out: importlib.import_module": ("exec", True),
    "call of a name that reaches out: builtins.__import__": ("import", True),
    "call of a name that reaches out: socket.gethostbyname": ("socket.gethostbyname", False),
    "call of a name that reaches out: ctypes.CDLL": ("ctypes.dlopen", False),
    "ways of naming and calling: INST": ("os.system", True),
    "ways of naming and calling: OBJ": ("os.system", True),
    "ways of naming and calling: GLOBAL REDUCE": ("os.system", True),
    "ways of naming and calling: named only": ("import", True),
    "archives of storages, old form: code as platform": ("os.system", True),
    "archives of storages, old form: code as key": ("os.system", True),
    "archives of storages, zip form: code in data.pkl": ("os.system", True),
    "pickled statistics: code beside it": ("exec", True),
}


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Reports:
    return read_all(tmp_path_factory.mktemp("live"), {name: HOSTILE[name] for name in LIVE}, "naive")


@pytest.mark.parametrize("name", LIVE)
def test_a_naive_reader_is_caught(name: str, live: Reports) -> None:
    event, canary = LIVE[name]
    _, report = live[name]
    assert event in {seen.split()[0] for seen in report.events}, report
    assert report.canary == canary
    with pytest.raises(AssertionError):
        check_conduct(report)


def test_a_trusting_reader_and_a_greedy_file_are_caught(tmp_path: Path) -> None:
    greedy = op.whole(op.call(op.name("builtins", "bytearray"), op.number(400_000_000)))
    files = {
        "network": Scene(tmp_path).network(),
        "greedy": greedy,
        "endless": op.whole(op.call(op.name("time", "sleep"), op.number(60))),
        "after": op.whole(op.number(1)),
    }
    paths = [write(tmp_path / f"{name}.pkl", content) for name, content in files.items()]
    network, greedy, endless, after = examine(paths, ["trusting"] * 4, folder=tmp_path, deadline=3)
    assert network.canary  # its source text is live
    assert {"exec", "open", "os.system"} <= {event.split()[0] for event in network.events}
    assert greedy.peak_bytes > 300_000_000
    assert endless.outcome == "died: -14"  # by the timer
    assert after.outcome == "read"  # by the next child
