"""A valid file with random damage is a network still, or is refused in one line; nothing else, whatever the damage.

And: the command line refuses hostile files with exit code 2 and leaves no file.
"""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from audited_reader import ALLOWANCE, SECONDS, Report, examine
from edm2_files import dumps, reference_objects
from hostile_files import catalogue
from hostile_parts import Scene, write

KINDS = ("network", "network of zip storages", "statistics", "npz")
MUTANTS = 90  # of each kind
INTERESTING = np.array(
    [0, 1, 0x28, 0x29, 0x2E, 0x4E, 0x52, 0x5D, 0x62, 0x63, 0x71, 0x73, 0x7D, 0x80, 0x81, 0x93, 0x94, 0x95, 0xFF]
)


def _flip(content: bytearray, random: np.random.Generator) -> None:
    for place in random.integers(0, len(content), random.integers(1, 4)):
        content[place] ^= 1 << int(random.integers(8))


def _replace(content: bytearray, random: np.random.Generator) -> None:
    for place in random.integers(0, len(content), random.integers(1, 6)):
        content[place] = random.choice(INTERESTING)  # opcodes, mostly


def _delete(content: bytearray, random: np.random.Generator) -> None:
    start = int(random.integers(len(content)))
    del content[start : start + int(random.integers(1, 40))]


def _repeat(content: bytearray, random: np.random.Generator) -> None:
    start, size = int(random.integers(len(content))), int(random.integers(1, 200))
    content[start:start] = content[start : start + size] * int(random.integers(1, 4))


def _move(content: bytearray, random: np.random.Generator) -> None:
    start, size, to = (int(number) for number in random.integers(0, len(content), 3))
    piece = content[start : start + size % 100]
    content[to : to + len(piece)] = piece


def _enlarge(content: bytearray, random: np.random.Generator) -> None:
    place = int(random.integers(len(content) - 8))
    size = int(random.choice([2, 4, 8]))
    content[place : place + size] = int(random.choice([2**15 - 1, 2**16 - 1, 0, 2**8])).to_bytes(size, "little")


def _cut(content: bytearray, random: np.random.Generator) -> None:
    del content[int(random.integers(len(content))) :]


def _insert(content: bytearray, random: np.random.Generator) -> None:
    place = int(random.integers(len(content)))
    content[place:place] = random.bytes(int(random.integers(1, 10)))


DAMAGE: tuple[Callable[[bytearray, np.random.Generator], None], ...] = (
    *(_flip, _flip, _replace, _replace, _delete, _repeat, _move, _enlarge, _cut, _insert),
)


def base_file(kind: str, scene: Scene) -> bytes:
    if kind.startswith("network"):
        return dumps(scene.objects(), zip_storages="zip" in kind)
    if kind == "statistics":
        return dumps(reference_objects(3, dino=2))
    path = scene.folder / "base.npz"
    np.savez(path, mu=np.ones(3), sigma=np.eye(3))
    return path.read_bytes()


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[Path, Report]]]:
    folder = tmp_path_factory.mktemp("damaged")
    scene = Scene(folder)
    files = []
    for number, kind in enumerate(KINDS):
        base = base_file(kind, scene)
        reader = "assemble" if kind.startswith("network") else "reference"
        for index in range(MUTANTS):
            random = np.random.default_rng([number, index])
            content = bytearray(base)
            if index:  # the first is whole
                for _ in range(int(random.integers(1, 3))):
                    DAMAGE[int(random.integers(len(DAMAGE)))](content, random)
                    if not content:
                        break
            path = write(folder / f"{number}-{index:03d}{'.npz' if kind == 'npz' else '.pkl'}", bytes(content))
            files.append((kind, path, reader))
    found = examine([path for _, path, _ in files], [reader for _, _, reader in files], folder=folder)
    result: dict[str, list[tuple[Path, Report]]] = {kind: [] for kind in KINDS}
    for (kind, path, _), report in zip(files, found, strict=True):
        result[kind].append((path, report))
    return result


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_refused_or_does_not_matter(kind: str, reports: dict[str, list[tuple[Path, Report]]]) -> None:
    wrong = []
    for path, report in reports[kind]:
        fine = report.outcome == "read" or (
            report.user_error
            and str(path) in report.message
            and report.message.isprintable()
            and len(report.message) < 600
        )
        frugal = report.seconds < SECONDS and report.peak_bytes < report.file_bytes + ALLOWANCE
        if not fine or not frugal or report.events or report.canary:
            wrong.append((path.name, report))
    assert not wrong
    outcomes = [report.outcome for _, report in reports[kind]]
    assert outcomes[0] == "read"
    assert outcomes.count("UserError") > MUTANTS // 4  # the damage is not harmless throughout


# One of several kinds each: through the command, a process of its own.
CHOSEN = (
    "call of a name that runs code: os.system",
    "archives of storages, old form: code as platform",
    "exponential nesting: name of the VAE",
    "foreign files: HTML",
    "ends and beginnings: a second pickle",
)
COMMAND = "import sys; from autoguidance.cli import main; sys.exit(max(main(a.split('|')) for a in sys.argv[1:]))"


def command(folder: Path, *calls: str) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, with bounds that keep a hostile file from taking the machine."""
    bounded = "import resource; resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30)); " + COMMAND
    arguments = [sys.executable, "-c", bounded, *calls]
    return subprocess.run(arguments, cwd=folder, capture_output=True, text=True, check=False, timeout=60)


def test_command_refuses_with_one_line_and_writes_nothing(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    cases = {f"{case.kind}: {case.name}": case for case in catalogue()}
    paths = [write(tmp_path / f"{i}.pkl", cases[name].build(scene)) for i, name in enumerate(CHOSEN)]
    calls = [f"import|{path}|--out|{tmp_path / 'out.safetensors'}" for path in paths]
    paths.append(write(tmp_path / "reference.pkl", cases["pickled statistics: code in it"].build(scene)))
    calls.append(f"import|{paths[-1]}|--out|{tmp_path / 'out.npz'}")
    before = sorted(tmp_path.iterdir())
    run = command(tmp_path, *calls)
    assert run.returncode == 2, run.stderr
    lines = run.stderr.strip().split("\n")
    assert len(lines) == len(calls), run.stderr
    for line, path in zip(lines, paths, strict=True):
        assert line.startswith(f"autoguidance: {path} is refused: ")
    assert run.stdout == ""
    assert not scene.canary.exists()
    assert sorted(tmp_path.iterdir()) == before


def test_command_imports_a_harmless_file(tmp_path: Path) -> None:
    path = write(tmp_path / "net-0001024-0.050.pkl", Scene(tmp_path).network())
    call = f"import|{path}|--out|{tmp_path / 'out.safetensors'}"
    run = command(tmp_path, call)
    assert run.returncode == 0, run.stderr
    assert "Warning" not in run.stderr
    assert (tmp_path / "out.safetensors").stat().st_size > 2 * 2326
