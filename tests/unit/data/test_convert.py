"""`data convert`: the same set in another form, whoever made it, however often it was interrupted."""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import autoguidance.data.convert as convert_module
from autoguidance.cli.data import data_app
from autoguidance.data import DataError, open_data
from autoguidance.data.convert import convert_data
from autoguidance.data.parts import PART_IMAGES, member_name
from autoguidance.data.transforms import TRANSFORMS
from autoguidance.errors import UserError

MakeFolder = Callable[..., Path]
Rgb = Callable[..., np.ndarray]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Three parts of small pictures with classes, as one array file."""
    count = 2 * PART_IMAGES + 5
    images = np.random.default_rng(0).integers(0, 256, (count, 6, 6, 3), dtype=np.uint8)
    names = np.array(["ant", "bee", "cat", "nobody"])
    np.savez(tmp_path / "many.npz", images=images, labels=np.arange(count) % 3, class_names=names)
    return tmp_path / "many.npz"


def test_the_result_is_the_same_set(many: Path, tmp_path: Path) -> None:
    result = convert_data(many, tmp_path / "out.zip", resolution=8)
    count = 2 * PART_IMAGES + 5
    assert (result.num_images, result.num_made, result.was_there) == (count, count, False)
    before, after = open_data(many, resolution=8), open_data(tmp_path / "out.zip")
    assert after.fingerprint == before.fingerprint  # pixels, order, labels and all class names
    assert after.class_names == ("ant", "bee", "cat", "nobody")
    assert not list(tmp_path.glob(".*"))


def test_the_form_is_that_of_the_edm2_data_sets(many: Path, tmp_path: Path) -> None:
    convert_data(many, tmp_path / "out.zip", resolution=8)
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        members = archive.infolist()
        assert all(member.compress_type == zipfile.ZIP_STORED for member in members)
        document = json.loads(archive.read("dataset.json"))
        expected = [f"00000/img{index:08d}.png" for index in range(2 * PART_IMAGES + 5)]
        assert [member.filename for member in members] == [*expected, "dataset.json"]
        assert document["labels"] == [[name, index % 3] for index, name in enumerate(expected)]
        image = Image.open(io.BytesIO(archive.read(expected[7])))
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", (8, 8))
    assert member_name(1_281_166, "img", "png") == "01281/img01281166.png"


def test_bytes_do_not_depend_on_the_number_of_processes(many: Path, tmp_path: Path) -> None:
    digests = set()
    for workers in (1, 2, 3):
        convert_data(many, tmp_path / f"{workers}.zip", resolution=8, workers=workers)
        digests.add(sha256(tmp_path / f"{workers}.zip"))
    assert len(digests) == 1


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_every_transform_from_files(make_folder: MakeFolder, tmp_path: Path, transform: str) -> None:
    picture = np.random.default_rng(1).integers(0, 256, (20, 50, 3), dtype=np.uint8)
    root = make_folder({"a/1.png": picture, "b/2.png": picture[:, ::-1].copy()})
    convert_data(root, tmp_path / "out.zip", resolution=10, transform=transform)
    source = open_data(tmp_path / "out.zip")
    for row, pixels in enumerate((picture, picture[:, ::-1])):
        expected = TRANSFORMS[transform](pixels, 10)
        np.testing.assert_array_equal(source.read([row])[0].permute(1, 2, 0), expected)


def test_every_kind_of_source_by_several_processes(many: Path, tmp_path: Path) -> None:
    """A zip's file position and a data set's memory map are not shared by the processes."""
    datasets = pytest.importorskip("datasets", reason="needs the datasets extra")
    convert_data(many, tmp_path / "one.zip", resolution=8)
    with zipfile.ZipFile(tmp_path / "one.zip") as archive:
        archive.extractall(tmp_path / "folder")
    source = open_data(tmp_path / "one.zip")
    rows = {
        "image": [
            {"bytes": (tmp_path / "folder" / member_name(i, "img", "png")).read_bytes()}
            for i in range(source.num_images)
        ],
        "label": source.class_idx,
    }
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(source.class_names))}
    )
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "saved")
    digests = set()
    for kind in ("one.zip", "folder", "saved"):
        convert_data(tmp_path / kind, tmp_path / f"{kind}-out.zip", resolution=6, workers=2)
        after = open_data(tmp_path / f"{kind}-out.zip")
        assert after.fingerprint == open_data(tmp_path / kind, resolution=6).fingerprint
        digests.add(after.fingerprint)
    assert len(digests) == 1


def test_a_folder_as_target_and_an_unlabelled_set(make_folder: MakeFolder, rgb: Rgb, tmp_path: Path) -> None:
    root = make_folder({"1.png": rgb(1), "2.png": rgb(2)})
    convert_data(root, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "dataset.json").read_text())["labels"] is None
    assert open_data(tmp_path / "out").fingerprint == open_data(root).fingerprint
    assert convert_data(root, tmp_path / "out").was_there


def test_grey_images_become_rgb_where_any_image_is(make_folder: MakeFolder, rgb: Rgb, tmp_path: Path) -> None:
    grey = {f"{index:04d}.png": np.full((8, 8), index % 256, dtype=np.uint8) for index in range(PART_IMAGES + 3)}
    only = make_folder(grey, "grey")
    convert_data(only, tmp_path / "grey.zip")
    assert open_data(tmp_path / "grey.zip").channels == 1
    mixed = make_folder({**grey, "last.png": rgb(5)}, "mixed")
    convert_data(mixed, tmp_path / "mixed.zip", workers=2)
    source = open_data(tmp_path / "mixed.zip")
    assert source.survey.modes == {"RGB": PART_IMAGES + 4}
    assert source.fingerprint == open_data(mixed).fingerprint


def test_the_depth_of_16_bit_images_is_that_of_the_whole_set(make_folder: MakeFolder, tmp_path: Path) -> None:
    def deep(value: int) -> Image.Image:
        return Image.fromarray(np.full((8, 8), value, dtype=np.uint16))

    files = {f"{index:04d}.png": deep(index) for index in range(PART_IMAGES + 1)}
    root = make_folder({**files, "last.png": deep(4000)})  # 12 bits, seen in the last part only
    result = convert_data(root, tmp_path / "out.zip")
    assert result.notes == (
        f"{PART_IMAGES + 2} 16-bit grey images hold 12-bit values (largest 4000): scaled by 255/4095",
    )
    source = open_data(tmp_path / "out.zip")
    assert source.fingerprint == open_data(root).fingerprint
    assert source.read([200]).unique().tolist() == [round(200 * 255 / 4095)]


def test_all_problems_at_once_and_nothing_left(make_folder: MakeFolder, rgb: Rgb, tmp_path: Path) -> None:
    good = {f"{index:04d}.png": rgb(index) for index in range(PART_IMAGES)}
    root = make_folder({**good, "0003.png": b"", "last.png": b"no image", "raw.dng": b"x", "wide.png": rgb(1, 16)[:8]})
    with pytest.raises(DataError) as caught:
        convert_data(root, tmp_path / "out.zip", workers=2)
    assert {problem.where: problem.what for problem in caught.value.problems} == {
        "0003.png": "empty file",
        "last.png": "not an image",
        "raw.dng": ".dng files cannot be read; convert it to PNG",
        "wide.png": "16x8, others are 8x8",
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == ["my_images"]


def test_a_finished_set_is_kept_and_another_one_is_not_overwritten(many: Path, tmp_path: Path) -> None:
    convert_data(many, tmp_path / "out.zip", resolution=8)
    before = (tmp_path / "out.zip").stat().st_mtime_ns
    assert convert_data(many, tmp_path / "out.zip", resolution=8).was_there
    assert (tmp_path / "out.zip").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="exists already and is not what this command makes"):
        convert_data(many, tmp_path / "out.zip", resolution=9)
    (tmp_path / "mine.zip").write_bytes(b"my thesis")
    with pytest.raises(UserError, match="exists already"):
        convert_data(many, tmp_path / "mine.zip", resolution=8)
    assert (tmp_path / "mine.zip").read_bytes() == b"my thesis"


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"transform": "crop"}, "choose one of center-crop, center-crop-wide, center-crop-dhariwal"),
        ({"resolution": 0}, "resolution 0 is out of range"),
        ({"workers": 0}, "choose at least 1"),
        ({"out": "out.tar"}, "ends in .zip"),
    ],
)
def test_wrong_options(many: Path, tmp_path: Path, changes: dict[str, object], reason: str) -> None:
    arguments = {"out": "out.zip", "resolution": 8, **changes}
    with pytest.raises(UserError, match=reason):
        convert_data(many, tmp_path / str(arguments.pop("out")), **arguments)  # type: ignore[arg-type]


def test_an_interrupted_conversion_goes_on_with_what_is_missing(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert_data(many, tmp_path / "whole.zip", resolution=8)

    def stop(done: int, total: int, figures: dict[str, object]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_data(many, tmp_path / "out.zip", resolution=8, workers=1, progress=stop)
    assert not (tmp_path / "out.zip").exists()
    (parts,) = tmp_path.glob(".out.zip.parts")
    kept = sorted(path.name for path in parts.glob("*.zip"))
    assert 1 <= len(kept) < 3
    (parts / kept[0]).write_bytes((parts / kept[0]).read_bytes()[:-40])  # a torn part is made again
    made: list[int] = []
    original = convert_module._make_part
    monkeypatch.setattr(
        convert_module, "_make_part", lambda *arguments: made.append(arguments[2]) or original(*arguments)
    )
    convert_data(many, tmp_path / "out.zip", resolution=8, workers=1)
    assert sorted(made) == [number for number in range(3) if number == 0 or f"{number:06d}.zip" not in kept]
    assert sha256(tmp_path / "out.zip") == sha256(tmp_path / "whole.zip")


def test_a_changed_set_begins_anew(make_folder: MakeFolder, rgb: Rgb, tmp_path: Path) -> None:
    files = {f"{index:04d}.png": rgb(index) for index in range(PART_IMAGES + 1)}
    root = make_folder(files)

    def stop(done: int, total: int, figures: dict[str, object]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_data(root, tmp_path / "out.zip", workers=1, progress=stop)
    make_folder({"0002.png": rgb(999)})
    result = convert_data(root, tmp_path / "out.zip", workers=1)
    assert result.num_made == PART_IMAGES + 1
    assert open_data(tmp_path / "out.zip").fingerprint == open_data(root).fingerprint


def test_killed_without_warning_it_goes_on_and_leaves_no_process(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (8 * PART_IMAGES, 8, 8, 3), dtype=np.uint8)
    np.save(tmp_path / "many.npy", images)
    code = "import sys; from autoguidance.data.convert import convert_data as c; c(*sys.argv[1:], resolution=64, workers=2)"

    def start(out: Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "many.npy"), str(out)])

    process = start(tmp_path / "out.zip")
    parts = tmp_path / ".out.zip.parts"
    deadline = time.monotonic() + 60
    while len(list(parts.glob("0*.zip"))) < 2:
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert len(children) == 2
    assert not (tmp_path / "out.zip").exists()
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{child}/fd").exists() and os.listdir(f"/proc/{child}/fd") for child in children):  # noqa: PTH208
        assert time.monotonic() < deadline, "a worker outlived its command"
        time.sleep(0.05)
    finished = {path.name: path.stat().st_mtime_ns for path in parts.glob("0*.zip")}
    assert 2 <= len(finished) < 8
    again, whole = start(tmp_path / "out.zip"), start(tmp_path / "whole.zip")
    assert (again.wait(), whole.wait()) == (0, 0)
    assert sha256(tmp_path / "out.zip") == sha256(tmp_path / "whole.zip")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["many.npy", "out.zip", "whole.zip"]


def test_two_commands_at_once_do_not_disturb_each_other(many: Path, tmp_path: Path) -> None:
    reasons = []

    def second(done: int, total: int, figures: dict[str, object]) -> None:
        with pytest.raises(UserError) as caught:
            convert_data(many, tmp_path / "out.zip", resolution=8)
        reasons.append(str(caught.value))

    convert_data(many, tmp_path / "out.zip", resolution=8, workers=1, progress=second)
    assert "another process is making" in reasons[0]
    assert open_data(tmp_path / "out.zip").num_images == 2 * PART_IMAGES + 5


def test_the_command(many: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.zip"
    arguments = ["convert", str(many), "--out", str(out), "--resolution", "4", "--transform", "center-crop-dhariwal"]
    result = CliRunner().invoke(data_app, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    count = 2 * PART_IMAGES + 5
    assert json.loads(result.output) == {
        "out": str(out),
        "num_images": count,
        "num_made": count,
        "was_there": False,
        "notes": [],
    }
    assert "there already" in CliRunner().invoke(data_app, arguments).output
