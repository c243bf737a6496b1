"""Classes come from top-level folders or dataset.json; whatever is wrong with a label is named with its file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autoguidance.data import DataError, open_data
from autoguidance.errors import UserError

MakeFolder = Callable[..., Path]
Rgb = Callable[..., np.ndarray]


def problems(root: Path) -> dict[str, str]:
    with pytest.raises(DataError) as caught:
        open_data(root)
    return {problem.where: problem.what for problem in caught.value.problems}


def labelled(make_folder: MakeFolder, rgb: Rgb, labels: Any, **more: Any) -> Path:
    files = {f"00000/img{index}.png": rgb(index) for index in range(3)}
    return make_folder({**files, "dataset.json": json.dumps({"labels": labels, **more}).encode()})


def test_top_level_folders_are_classes(make_folder: MakeFolder, rgb: Rgb) -> None:
    source = open_data(make_folder({"dog/2.png": rgb(0), "cat/deep/er/1.png": rgb(1), "dog/1.png": rgb(2)}))
    assert source.class_names == ("cat", "dog")
    assert source.class_idx is not None
    assert source.class_idx.dtype == np.int64
    assert source.class_idx.tolist() == [0, 1, 1]
    assert source.survey.class_counts == {"cat": 1, "dog": 2}
    np.testing.assert_array_equal(source.read([1])[0], rgb(2).transpose(2, 0, 1))  # dog/1.png comes before dog/2.png


def test_images_in_the_root_are_unlabelled_and_do_not_mix(make_folder: MakeFolder, rgb: Rgb) -> None:
    source = open_data(make_folder({"1.png": rgb(0), "2.png": rgb(1)}, "flat"))
    assert source.class_names == ()
    assert source.class_idx is None
    assert source.num_classes == 0
    assert problems(make_folder({"1.png": rgb(0), "cat/2.png": rgb(1)}, "mixed")).keys() == {"1.png"}


def test_a_wrapping_folder_is_pointed_out(make_folder: MakeFolder, rgb: Rgb) -> None:
    source = open_data(make_folder({"set/cat/1.png": rgb(0), "set/dog/2.png": rgb(1)}))
    assert source.class_names == ("set",)
    assert any("sub-folders (cat, dog" in note for note in source.survey.notes)


def test_dataset_json(make_folder: MakeFolder, rgb: Rgb) -> None:
    root = labelled(make_folder, rgb, [["00000/img2.png", 2], ["00000/img0.png", 0], ["00000/img1.png", 2]])
    source = open_data(root)
    assert source.class_idx is not None
    assert source.class_idx.tolist() == [0, 2, 2]
    assert source.class_names == ("0", "1", "2")
    assert source.survey.class_counts == {"0": 1, "1": 0, "2": 2}


def test_dataset_json_may_name_classes_or_have_no_labels(make_folder: MakeFolder, rgb: Rgb) -> None:
    pairs = [[f"00000/img{index}.png", index % 2] for index in range(3)]
    assert open_data(labelled(make_folder, rgb, pairs, class_names=["cat", "dog"])).class_names == ("cat", "dog")
    assert open_data(labelled(make_folder, rgb, None)).class_idx is None


@pytest.mark.parametrize(
    "label, reason",
    [
        (1.0, "label '1.0' is not an integer"),
        ("cat", "label 'cat' is not an integer"),
        (True, "label 'True' is not an integer"),
        (None, "missing label"),
        ([0, 1], "is not an integer"),
        (-1, "label -1 is out of range"),
        (10**30, "out of range 0 .. 65535"),
    ],
)
def test_a_wrong_label(make_folder: MakeFolder, rgb: Rgb, label: Any, reason: str) -> None:
    root = labelled(make_folder, rgb, [["00000/img0.png", 0], ["00000/img1.png", label], ["00000/img2.png", 1]])
    found = problems(root)
    assert found.keys() == {"00000/img1.png"}
    assert reason in found["00000/img1.png"]


def test_entries_that_do_not_fit_the_files(make_folder: MakeFolder, rgb: Rgb) -> None:
    labels = [["00000/img0.png", 0], ["00000/img0.png", 1], ["gone.png", 0], "img1", ["00000/img1.png"], [7, 7]]
    assert problems(labelled(make_folder, rgb, labels)) == {
        "00000/img0.png": "listed twice in dataset.json",
        "00000/img1.png": "missing label: not listed in dataset.json",
        "00000/img2.png": "missing label: not listed in dataset.json",
        "gone.png": "listed in dataset.json but absent",
        "dataset.json labels[3]": 'not a pair ["name.png", class]',
        "dataset.json labels[4]": 'not a pair ["name.png", class]',
        "dataset.json labels[5]": 'not a pair ["name.png", class]',
    }


def test_a_label_beyond_the_class_names(make_folder: MakeFolder, rgb: Rgb) -> None:
    pairs = [[f"00000/img{index}.png", index] for index in range(3)]
    found = problems(labelled(make_folder, rgb, pairs, class_names=["cat", "dog"]))
    assert found == {"00000/img2.png": "label 2 is out of range 0 .. 1"}


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"{", "not valid JSON"),
        (b"\xff\xfe\x00", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[]", 'has no "labels"'),
        (b'{"labels": {"a.png": 1}}', "is not a list"),
        (b'{"labels": [], "class_names": [1]}', "is not a list of names"),
    ],
)
def test_a_dataset_json_of_another_form(make_folder: MakeFolder, rgb: Rgb, content: bytes, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        open_data(make_folder({"0.png": rgb(0), "dataset.json": content}))
