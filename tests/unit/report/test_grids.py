"""Grids hold exactly the pixels they were given, at the place that seeds and classes say."""

import numpy as np
import pytest
from PIL import Image

from autoguidance.errors import UserError
from autoguidance.report.grids import make_grid, matched, save_comparison, save_grid, shrink
from autoguidance.report.records import ImageSet


def images(count: int, channels: int = 3, height: int = 4, width: int = 5) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, channels, height, width), dtype=np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("scale", "gap"), [(1, 0), (3, 2)])
def test_every_image_stands_in_its_cell(channels, scale, gap):
    source = images(7, channels)
    grid = make_grid(source, columns=3, scale=scale, gap=gap)
    assert grid.shape == (3 * 4 * scale + 2 * gap, 3 * 5 * scale + 2 * gap, 4)
    for index, image in enumerate(source):
        top, left = index // 3 * (4 * scale + gap), index % 3 * (5 * scale + gap)
        cell = grid[top : top + 4 * scale, left : left + 5 * scale]
        # any pixel of an enlarged pixel's square, here the last
        np.testing.assert_array_equal(cell[scale - 1 :: scale, scale - 1 :: scale, :3].transpose(2, 0, 1) - image, 0)
        assert (cell[..., 3] == 255).all()
    assert (grid[..., 3] == 255).sum() == 7 * 4 * 5 * scale**2  # gaps and unfilled cells are transparent


def test_save_grid_writes_the_grid(tmp_path):
    source = images(5)
    path = save_grid(source, tmp_path / "new" / "grid.png", columns=5, gap=0)
    written = np.asarray(Image.open(path).convert("RGB"))
    np.testing.assert_array_equal(written, np.concatenate(list(source.transpose(0, 2, 3, 1)), axis=1))


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((2, 3, 4, 4), np.float32),
        np.zeros((2, 2, 4, 4), np.uint8),
        np.zeros((3, 4, 4), np.uint8),
        np.zeros((0, 3, 4, 4), np.uint8),
    ],
)
def test_what_is_no_image_is_refused(wrong, tmp_path):
    with pytest.raises(UserError, match="images must be uint8"):
        save_grid(wrong, tmp_path / "x.png")
    with pytest.raises(UserError, match="columns"):
        make_grid(images(2), columns=0)


def image_set(seeds, class_idx=None) -> ImageSet:
    idx = None if class_idx is None else np.array(class_idx)
    return ImageSet(seeds=np.array(seeds), class_idx=idx, images=images(len(seeds), 1))


def test_rows_match_seeds_and_classes_across_methods():
    sets = {
        "unguided": image_set([5, 6, 7, 8], [1, 0, 1, 1]),
        "autoguidance": image_set(
            [8, 7, 6, 9, 5], [1, 1, 0, 0, 0]
        ),  # other order; seed 5 got another class, 9 is alone
        "real": image_set([0, 1, 2], [0, 1, 1]),
    }
    rows = matched(sets, per_row=2, max_rows=9)
    assert [idx for idx, _ in rows] == [0, 1]
    for idx, indices in rows:
        seeds = [sets[name].seeds[indices[name]].tolist() for name in ("unguided", "autoguidance")]
        assert seeds[0] == seeds[1] == {0: [6], 1: [7, 8]}[idx or 0]
        assert all(sets["real"].class_idx[indices["real"]] == idx)


def test_rows_without_classes_run_through_the_seeds():
    sets = {
        "unguided": image_set(range(10)),
        "autoguidance": image_set(range(10), range(10)),
        "real": image_set(range(3)),
    }
    rows = matched(sets, per_row=4, max_rows=2)
    assert [indices["unguided"].tolist() for _, indices in rows] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert [indices["real"].tolist() for _, indices in rows] == [[0, 1, 2], []]
    assert matched({"unguided": image_set([1]), "cfg": image_set([2])}, per_row=4, max_rows=2) == []
    assert matched({"real": image_set([1])}, per_row=4, max_rows=2) == []


def test_many_classes_are_thinned_evenly():
    rows = matched({"unguided": image_set(range(1000), range(1000))}, per_row=4, max_rows=3)
    assert [idx for idx, _ in rows] == [0, 500, 999]


def test_shrink_keeps_small_images_and_means():
    assert shrink(images(2, 3, 8, 8), 8).shape == (2, 3, 8, 8)
    flat = np.full((2, 3, 100, 50), 77, np.uint8)
    reduced = shrink(flat, 20)
    assert reduced.shape == (2, 3, 20, 10)
    assert (reduced == 77).all()


def test_comparison_shows_each_set_and_its_titles(tmp_path):
    left, right = np.full((6, 1, 8, 8), 40, np.uint8), np.full((6, 3, 8, 8), 200, np.uint8)
    path = save_comparison(
        {"unguided": left, "autoguidance, w = 1.25": right},
        tmp_path / "comparison.png",
        per_row=3,
        row_titles=("zero", "τρία"),
        subtitles={"unguided": "distance 0.82"},
    )
    picture = np.asarray(Image.open(path).convert("L"))
    # an 8-pixel image is enlarged 5 times; six of them per set
    assert (picture == 40).sum() >= 6 * 40 * 40
    assert (picture == 200).sum() >= 6 * 40 * 40
    columns = [np.flatnonzero((picture == value).sum(axis=0) >= 80) for value in (40, 200)]
    assert columns[0].max() < columns[1].min()
    titles = picture[: np.flatnonzero((picture == 40).sum(axis=1) >= 40).min()]
    assert (titles < 100).any()  # something dark is written above the grids


def test_comparison_refuses_unequal_sets(tmp_path):
    with pytest.raises(UserError, match="differ"):
        save_comparison({"a": images(4), "b": images(5)}, tmp_path / "x.png")
    with pytest.raises(UserError, match="at least one column"):
        save_comparison({}, tmp_path / "x.png")
    with pytest.raises(UserError, match="row titles"):
        save_comparison({"a": images(4)}, tmp_path / "x.png", per_row=2, row_titles=("only one",))
