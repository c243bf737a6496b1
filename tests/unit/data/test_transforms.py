"""The three ways to a square picture against what their definitions give for pictures that can be worked out by hand."""

import numpy as np
import pytest
from PIL import Image

from autoguidance.data.transforms import TRANSFORMS, center_crop_dhariwal, center_crop_wide

RAMP = np.random.default_rng(0).integers(0, 256, (3, 40, 60), dtype=np.uint8).transpose(1, 2, 0).copy()


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
@pytest.mark.parametrize("shape", [(40, 60, 3), (60, 40, 3), (31, 31), (5, 90), (90, 5, 3), (1, 1)])
@pytest.mark.parametrize("resolution", [1, 8, 32])
def test_every_shape_becomes_square_and_flat_stays_flat(transform, shape, resolution) -> None:
    flat = transform(np.full(shape, 77, dtype=np.uint8), resolution)
    assert flat.shape == (resolution, resolution, *shape[2:])
    assert flat.dtype == np.uint8
    assert flat.flags.c_contiguous
    assert set(np.unique(flat)) <= {0, 77}
    assert flat.max() == 77


def test_wide_keeps_the_whole_width_between_black_bars() -> None:
    picture = np.full((20, 40, 3), 9, dtype=np.uint8)
    picture[:, :4] = 200  # lost by a centre crop
    result = center_crop_wide(picture, 40)
    assert (result[10:30] == picture).all()
    assert (result[:10] == 0).all()
    assert (result[30:] == 0).all()
    assert (TRANSFORMS["center-crop"](picture, 20) == 9).all()


def test_wide_takes_the_centred_square_of_a_high_picture() -> None:
    np.testing.assert_array_equal(center_crop_wide(RAMP.transpose(1, 0, 2), 40), RAMP.transpose(1, 0, 2)[10:50])


def test_dhariwal_halves_by_means_of_two_columns_and_two_rows() -> None:
    # 40 >= 2 * 20: exactly one halving brings the short side to 20, the bicubic step has nothing to do. Pillow goes over
    # columns, then rows, and rounds halves up after each.
    columns = (RAMP[:, 0::2].astype(np.int64) + RAMP[:, 1::2] + 1) // 2
    expected = ((columns[0::2] + columns[1::2] + 1) // 2)[:, 5:25]
    np.testing.assert_array_equal(center_crop_dhariwal(RAMP, 20), expected)


def test_dhariwal_halves_while_the_short_side_is_twice_the_target() -> None:
    # 40 -> 20 (not to 10: 20 < 2 * 15) -> bicubic to 15 x round(30 * 15 / 20), rounded to even -> middle 15 columns.
    halved = Image.fromarray(RAMP).resize((30, 20), Image.Resampling.BOX)
    columns = round(30 * 15 / 20)
    resized = np.asarray(halved.resize((columns, 15), Image.Resampling.BICUBIC))
    left = (columns - 15) // 2
    np.testing.assert_array_equal(center_crop_dhariwal(RAMP, 15), resized[:, left : left + 15])
    without = np.asarray(Image.fromarray(RAMP).resize((columns, 15), Image.Resampling.BICUBIC))
    assert (without[:, left : left + 15] != center_crop_dhariwal(RAMP, 15)).any()


def test_dhariwal_leaves_a_square_of_the_right_size() -> None:
    np.testing.assert_array_equal(center_crop_dhariwal(RAMP[:, :40], 40), RAMP[:, :40])


def test_center_crop_cuts_before_it_resizes() -> None:
    picture = np.full((10, 30), 255, dtype=np.uint8)
    picture[:, 10:20] = 0  # the centred square; a resize before the cut would blend its edges with white
    assert (TRANSFORMS["center-crop"](picture, 4) == 0).all()
    assert (center_crop_dhariwal(picture, 4) > 0).any()
