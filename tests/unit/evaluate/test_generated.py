"""What is known about generated images that are measured."""

import numpy as np
import pytest
import torch
from PIL import Image

from autoguidance.errors import UserError
from autoguidance.evaluate.generated import open_generated, ranges_text
from autoguidance.storage import write_json

GENERATION = {
    "method": "autoguidance+interval",
    "main": "runs/main",
    "guide": "runs/guide",
    "weight": 1.25,
    "unconditional": None,
    "cfg_weight": 1.0,
    "interval": ["0.3", "inf"],
    "solver": {"name": "heun", "num_steps": 12},
    "classes": "balanced",
}


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (6, 1, 8, 8), dtype=np.uint8)


def test_npz_of_generate(tmp_path, pixels):
    seeds = np.array([4, 5, 6, 9, 10, 2])
    # A model without classes writes -1 for each; labels do not matter here.
    np.savez(tmp_path / "images.npz", images=pixels, seeds=seeds, class_idx=np.full(6, -1), latents=pixels / 1)
    write_json(tmp_path / "generation.json", GENERATION)
    for name in (tmp_path, tmp_path / "images.npz"):
        given = open_generated(name)
        assert given.num_images == 6
        assert torch.equal(torch.cat(list(given.batches(np.array([1, 5])))), torch.from_numpy(pixels[[1, 5]]))
        assert given.seeds_text(np.arange(5)) == "4-6,9-10"
        assert (given.method, given.class_sampling) == ("autoguidance+interval", "balanced")
        assert given.details["interval"] == [0.3, None]
        assert given.details["guide"] == "runs/guide"
        assert given.solver == {"name": "heun", "num_steps": 12}


def test_folder_of_png_named_by_seed(tmp_path, pixels):
    for seed, image in zip((0, 3, 4, 5, 6, 7), pixels, strict=True):
        Image.fromarray(image[0]).save(tmp_path / f"{seed:06d}.png")
    assert open_generated(tmp_path).seeds is None  # nobody says that these numbers are seeds
    write_json(tmp_path / "generation.json", GENERATION)
    given = open_generated(tmp_path)
    assert given.seeds_text(np.arange(6)) == "0,3-7"
    assert torch.equal(given.read(range(6)), torch.from_numpy(pixels))


def test_images_of_unknown_origin(tmp_path, pixels):
    np.savez(tmp_path / "x.npz", images=pixels)
    given = open_generated(tmp_path / "x.npz")
    assert (given.method, given.details, given.class_sampling, given.solver) == ("images", {}, "unknown", None)
    assert given.seeds_text(np.arange(2)) == ""
    assert torch.equal(given.read([2]), torch.from_numpy(pixels[[2]]))


def test_damaged_files_are_refused(tmp_path, pixels):
    path = tmp_path / "images.npz"
    with pytest.raises(UserError, match="does not exist"):
        open_generated(path)
    np.savez(path, images=pixels, seeds=np.arange(5))
    with pytest.raises(UserError, match="one seed each"):
        open_generated(path)
    np.savez(path, images=pixels, seeds=np.arange(6))
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(UserError, match=r"images\.npz"):
        open_generated(path)


@pytest.mark.parametrize(
    "seeds, text", [([], ""), ([5], "5"), ([0, 1, 2], "0-2"), ([3, 2, 1], "3,2,1"), ([0, 1, 7, 8], "0-1,7-8")]
)
def test_ranges(seeds, text):
    assert ranges_text(seeds) == text
