"""All files are checked before a set is given out: every problem is named at once, none is skipped."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import autoguidance.data.check as check
from autoguidance.data import DataError, open_data
from autoguidance.data.source import DecodedSource
from autoguidance.errors import UserError

MakeFolder = Callable[..., Path]
Rgb = Callable[..., np.ndarray]


def test_all_problems_at_once_in_one_line(make_folder: MakeFolder, rgb: Rgb) -> None:
    good = {f"{top}/{index}.png": rgb(index) for top in "ab" for index in range(10)}
    root = make_folder(good)
    whole = (root / "a/0.png").read_bytes()
    make_folder(
        {"a/1.png": whole[:-20], "b/2.png": rgb(0)[:7], "b/3.jpg": b"text", "b/4.png": b"", "b/photo.heic": b"x"}
    )
    with pytest.raises(DataError) as caught:
        open_data(root)
    expected = {
        "a/1.png": "truncated",
        "b/2.png": "8x7, others are 8x8",
        "b/3.jpg": "not an image",
        "b/4.png": "empty file",
    }
    expected["b/photo.heic"] = ".heic files cannot be read; convert it to PNG"
    assert {problem.where: problem.what for problem in caught.value.problems} == expected
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{root}: 5 of 22 files cannot be used: ")
    assert all(f"{where} ({what})" in message for where, what in expected.items())
    assert "--resolution N" in message


def test_many_problems_are_counted_and_kept(make_folder: MakeFolder) -> None:
    root = make_folder({f"{index:02d}.png": b"" for index in range(30)})
    with pytest.raises(DataError, match=r"30 of 30 files cannot be used: 00\.png .*and 25 more") as caught:
        open_data(root)
    assert [problem.where for problem in caught.value.problems] == [f"{index:02d}.png" for index in range(30)]


def test_mixed_sizes_need_a_resolution(make_folder: MakeFolder, rgb: Rgb) -> None:
    root = make_folder({f"{size}.png": rgb(size, size) for size in (6, 8, 12)})
    with pytest.raises(DataError, match=r"3 images have 3 different sizes from 6x6 to 12x12; give --resolution N"):
        open_data(root)
    source = open_data(root, resolution=4)
    assert source.read(range(3)).shape == (3, 3, 4, 4)


def test_equal_sizes_that_are_not_square_need_a_resolution(make_folder: MakeFolder, rgb: Rgb) -> None:
    root = make_folder({f"{seed}.png": rgb(seed)[:, :6] for seed in range(3)})
    with pytest.raises(DataError, match=r"the images are 6x8, not square; give --resolution N"):
        open_data(root)
    source = open_data(root, resolution=6)
    np.testing.assert_array_equal(source.read([1])[0].permute(1, 2, 0), rgb(1)[1:7, :6])


@pytest.mark.parametrize("resolution", [0, -3, 100_000])
def test_impossible_resolutions(resolution: int) -> None:
    with pytest.raises(UserError, match=f"resolution {resolution} is out of range"):
        open_data("digits", resolution=resolution)


def test_grey_stays_grey_only_if_all_are(make_folder: MakeFolder, rgb: Rgb) -> None:
    grey = {f"{seed}.png": rgb(seed)[..., 0] for seed in range(3)}
    assert open_data(make_folder(grey, "grey")).channels == 1
    source = open_data(make_folder({**grey, "3.png": rgb(3)}, "mixed"))
    assert source.channels == 3
    np.testing.assert_array_equal(source.read([0])[0], np.stack([rgb(0)[..., 0]] * 3))
    np.testing.assert_array_equal(source.read([3])[0], rgb(3).transpose(2, 0, 1))


def test_12_bit_values_in_16_bit_files_use_the_whole_range(make_folder: MakeFolder) -> None:
    values = np.arange(64, dtype=np.uint16).reshape(8, 8) * 60  # up to 3780: 12 bits
    source = open_data(make_folder({"a.png": values, "b.png": values // 2}))
    np.testing.assert_array_equal(source.read([0])[0, 0], np.rint(values * (255 / 4095)))
    np.testing.assert_array_equal(source.read([1])[0, 0], np.rint(values // 2 * (255 / 4095)))
    assert any("12-bit" in note for note in source.survey.notes)


@pytest.mark.parametrize("grey_first", [True, False])
def test_a_set_too_large_for_memory_gives_the_same(make_folder: MakeFolder, rgb: Rgb, grey_first: bool) -> None:
    files = {f"{label}/{seed}.png": rgb(seed) for label in "ab" for seed in range(70)}
    if grey_first:
        files["a/0.png"] = rgb(0)[..., 1]
    root = make_folder(files)
    kept, lazy = open_data(root), open_data(root, max_bytes_in_memory=140 * 3 * 64 - 1)
    assert isinstance(lazy, DecodedSource)
    assert not isinstance(open_data(root, max_bytes_in_memory=140 * 3 * 64), DecodedSource)
    chosen = [139, 0, 5, 5]
    np.testing.assert_array_equal(lazy.read(chosen), kept.read(chosen))
    assert lazy.fingerprint == kept.fingerprint


def test_a_file_that_changes_later_is_noticed(make_folder: MakeFolder, rgb: Rgb) -> None:
    root = make_folder({f"{seed}.png": rgb(seed) for seed in range(3)})
    source = open_data(root, max_bytes_in_memory=0)
    make_folder({"1.png": rgb(99)})
    with pytest.raises(UserError, match="image 1 changed after it was checked"):
        source.read([1])
    (root / "2.png").unlink()
    with pytest.raises(UserError, match=r"2\.png was readable when it was checked and no longer is"):
        source.read([2])


def test_other_files_are_ignored_and_counted(make_folder: MakeFolder, rgb: Rgb) -> None:
    others = {
        "a/notes.txt": b"",
        "a/Thumbs.db": b"",
        "a/.DS_Store": b"",
        ".cache/x.png": b"",
        "__MACOSX/a/._1.png": b"",
        "README": b"",
    }
    source = open_data(make_folder({"a/1.PNG": Image.fromarray(rgb(1)), **others}))
    assert source.num_images == 1
    assert source.survey.ignored == {"txt": 1, "db": 1, "hidden": 3, "no suffix": 1}


def test_nothing_to_use(tmp_path: Path, make_folder: MakeFolder) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: holds no images; give a folder"):
        open_data(tmp_path / "empty")
    with pytest.raises(DataError, match=r"holds no images \(ignored: 2 txt\)"):
        open_data(make_folder({"a.txt": b"", "b.txt": b""}))
    with pytest.raises(UserError, match=r"nowhere does not exist; give a folder"):
        open_data(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"owner/name does not exist \(a Hugging Face data set is hf://owner/name\)"):
        open_data("owner/name")
    with pytest.raises(UserError, match=r"a\.txt is a file of an unknown kind \(\.txt\)"):
        open_data(tmp_path / "my_images" / "a.txt")
    with pytest.raises(UserError, match=r"cannot read|does not exist"):
        open_data("bad\0name")


def test_links_are_followed_and_loops_named(make_folder: MakeFolder, rgb: Rgb, tmp_path: Path) -> None:
    elsewhere = make_folder({"1.png": rgb(1)}, "elsewhere")
    root = make_folder({"cat/0.png": rgb(0)})
    (root / "dog").symlink_to(elsewhere)
    assert open_data(root).class_names == ("cat", "dog")
    (root / "cat/loop").symlink_to(root)
    (root / "cat/gone.png").symlink_to(tmp_path / "nowhere.png")
    (root / "cat/self.png").symlink_to(root / "cat/self.png")
    with pytest.raises(DataError) as caught:
        open_data(root)
    reasons = {problem.where: problem.what for problem in caught.value.problems}
    assert set(reasons) == {"cat/loop", "cat/gone.png", "cat/self.png"}
    assert "leads back" in reasons["cat/loop"]
    assert "No such file" in reasons["cat/gone.png"]


def test_pipes_sockets_and_unreadable_folders_do_not_stop_it(
    make_folder: MakeFolder, rgb: Rgb, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_folder({"a/0.png": rgb(0), "b/1.png": rgb(1)})
    os.mkfifo(root / "a/pipe.png")
    monkeypatch.chdir(root)  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("a/socket.png")
        scandir = os.scandir

        def denied(path: Path) -> object:
            if Path(path).name == "b":
                raise PermissionError(13, "Permission denied")
            return scandir(path)

        monkeypatch.setattr(os, "scandir", denied)  # tests may run as root, whom no permission stops
        with pytest.raises(DataError) as caught:
            open_data(root)
    reasons = {problem.where: problem.what for problem in caught.value.problems}
    assert reasons["a/pipe.png"] == "not an ordinary file"
    assert "cannot be read" in reasons["a/socket.png"]
    assert reasons["b"] == "cannot be listed: Permission denied"


def test_names_that_would_disturb_a_terminal_are_escaped(make_folder: MakeFolder) -> None:
    root = make_folder({"red\x1b[31m\n.png": b""})
    with pytest.raises(DataError) as caught:
        open_data(root)
    assert str(caught.value).isprintable()
    assert r"red\x1b[31m\n.png (empty file)" in str(caught.value)


def test_progress_counts_every_image(make_folder: MakeFolder, rgb: Rgb) -> None:
    root = make_folder({f"{seed:03d}.png": rgb(seed) for seed in range(130)})
    calls: list[tuple[int, int]] = []
    open_data(root, progress=lambda done, total, figures: calls.append((done, total)))
    assert calls[-1] == (130, 130)
    assert calls == sorted(calls)


def test_threads_change_nothing(make_folder: MakeFolder, rgb: Rgb, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_folder({f"{seed:03d}.png": rgb(seed, 64) for seed in range(150)})
    monkeypatch.setattr(check, "parallel_workers", lambda: 4)
    monkeypatch.setattr(check, "_IMAGES_PER_TASK", 7)
    source = open_data(root)
    np.testing.assert_array_equal(source.read([149])[0], rgb(149, 64).transpose(2, 0, 1))
    monkeypatch.setattr(check, "parallel_workers", lambda: 1)
    assert open_data(root).fingerprint == source.fingerprint
