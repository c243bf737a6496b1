"""Data sets of the `datasets` library: by name on the hub (not reached here), saved folders and parquet files."""

import io
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from autoguidance.data import DataError, huggingface, open_data
from autoguidance.errors import UserError

datasets = pytest.importorskip("datasets", reason="needs the datasets extra")
Rgb = Callable[..., np.ndarray]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def table(rgb: Rgb, labels: list[int] | None = None, num: int = 3, **columns: object) -> "datasets.Dataset":
    content = {"image": [{"bytes": png(rgb(seed)), "path": None} for seed in range(num)], **columns}
    features = {"image": datasets.Image()}
    if labels is not None:
        content["label"] = labels
        features["label"] = datasets.ClassLabel(names=["cat", "dog"])
    for name in columns:
        features[name] = datasets.Value("int64")
    return datasets.Dataset.from_dict(content, features=datasets.Features(features))


def test_a_saved_data_set(tmp_path: Path, rgb: Rgb) -> None:
    table(rgb, [1, 0, 1]).save_to_disk(tmp_path / "saved")
    source = open_data(tmp_path / "saved")
    assert source.class_names == ("cat", "dog")
    assert source.class_idx is not None
    assert source.class_idx.tolist() == [1, 0, 1]
    np.testing.assert_array_equal(source.read([2])[0], rgb(2).transpose(2, 0, 1))


def test_splits_take_train_or_the_only_one(tmp_path: Path, rgb: Rgb) -> None:
    sets = {"test": table(rgb, [0, 0, 0]), "train": table(rgb, [1, 1, 1])}
    datasets.DatasetDict(sets).save_to_disk(tmp_path / "both")
    assert open_data(tmp_path / "both").survey.class_counts == {"cat": 0, "dog": 3}
    datasets.DatasetDict({"test": sets["test"]}).save_to_disk(tmp_path / "one")
    assert open_data(tmp_path / "one").survey.class_counts == {"cat": 3, "dog": 0}
    datasets.DatasetDict({"a": sets["test"], "b": sets["test"]}).save_to_disk(tmp_path / "neither")
    with pytest.raises(UserError, match="has no split 'train' but a, b"):
        open_data(tmp_path / "neither")


def test_parquet_files_alone_and_in_a_folder(tmp_path: Path, rgb: Rgb) -> None:
    (tmp_path / "set").mkdir()
    table(rgb, [1, 0, 1]).to_parquet(tmp_path / "set" / "train.parquet")
    for name in ("set", "set/train.parquet"):
        source = open_data(tmp_path / name)
        assert source.class_names == ("cat", "dog")
        np.testing.assert_array_equal(source.read([1])[0], rgb(1).transpose(2, 0, 1))


def test_plain_integer_labels_and_sets_without_labels(tmp_path: Path, rgb: Rgb) -> None:
    table(rgb, y=[0, 2, 2]).save_to_disk(tmp_path / "integers")
    assert open_data(tmp_path / "integers").class_names == ("0", "1", "2")
    table(rgb).save_to_disk(tmp_path / "none")
    assert open_data(tmp_path / "none").class_idx is None
    table(rgb, [-1, -1, -1]).save_to_disk(tmp_path / "hidden")
    assert open_data(tmp_path / "hidden").class_idx is None


def test_every_bad_row_is_named(tmp_path: Path, rgb: Rgb) -> None:
    cells = [{"bytes": png(rgb(0)), "path": None}, {"bytes": b"text", "path": None}, None]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    datasets.Dataset.from_dict({"image": cells, "label": [0, -1, 0]}, features=features).save_to_disk(tmp_path / "bad")
    with pytest.raises(DataError) as caught:
        open_data(tmp_path / "bad")
    assert [str(problem) for problem in caught.value.problems] == [
        "row 1 (label -1 is out of range 0 .. 1)",
        "row 1 (not an image)",
        "row 2 (no image in this row)",
    ]


def test_images_that_lie_outside_the_data_set(tmp_path: Path, rgb: Rgb, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "0.png").write_bytes(png(rgb(0)))
    paths = [str(tmp_path / "0.png"), "https://example.invalid/1.png", str(tmp_path / "gone.png")]
    linked = datasets.Dataset.from_dict({"image": paths}, features=datasets.Features({"image": datasets.Image()}))
    monkeypatch.setattr(datasets, "load_dataset", lambda path, name: linked)
    with pytest.raises(DataError) as caught:
        open_data("hf://owner/name")
    assert [str(problem) for problem in caught.value.problems] == [
        "row 1 (its bytes are not in the data set: https://example.invalid/1.png)",
        "row 2 (cannot be read: No such file or directory)",
    ]


def test_image_columns_must_be_one(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "text")
    with pytest.raises(UserError, match="has no image column among text"):
        open_data(tmp_path / "text")


def test_a_name_is_taken_apart(monkeypatch: pytest.MonkeyPatch, rgb: Rgb) -> None:
    asked: list[tuple[str, str | None]] = []

    def load(path: str, name: str | None = None) -> dict[str, object]:
        asked.append((path, name))
        return {"train": table(rgb, [0, 0, 0]), "test": table(rgb, [1, 1, 1])}

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert open_data("hf://owner/name").survey.class_counts == {"cat": 3, "dog": 0}
    assert open_data("hf://owner/name/plain:test").survey.class_counts == {"cat": 0, "dog": 3}
    assert asked == [("owner/name", None), ("owner/name", "plain")]
    assert open_data("hf://owner/name").name == "owner/name"


def test_failures_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(path: str, name: str | None = None) -> None:
        raise ConnectionError("cannot reach the hub\nsecond line")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(
        UserError, match=r"cannot load hf://owner/name: cannot reach the hub; check the name and the network"
    ) as caught:
        open_data("hf://owner/name")
    assert "\n" not in str(caught.value)


def test_without_the_extra_the_message_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"needs the `datasets` extra; run: pip install 'autoguidance\[datasets\]'"):
        huggingface.list_huggingface("hf://owner/name")
