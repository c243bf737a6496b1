"""Measuring in workers: what was measured on few images is part of the measurement on more, and averages are made once."""

from pathlib import Path

import numpy as np
import pytest
import torch

from autoguidance.data import open_data
from autoguidance.evaluate import open_network, source_statistics
from autoguidance.sample import Heun
from autoguidance.train.loop import train
from autoguidance.train.presets import resolve
from autoguidance.tune import measuring
from autoguidance.tune.measuring import MeasureSettings, Task, _Worker
from autoguidance.zoo import Pair


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    source = open_data("digits")
    train(resolve("nano", source, num_images=1024), source, folder / "main", device="cpu")
    network = open_network("pixels", channels=1, resolution=8)
    source_statistics([network], source)[0].save(folder / "reference.npz")
    return folder


def settings(run: Path, work: Path | None) -> MeasureSettings:
    return MeasureSettings(
        features="pixels",
        reference=run / "reference.npz",
        channels=1,
        resolution=8,
        partial=None if work is None else work / "partial",
        models=None if work is None else work / "models",
    )


def task(run: Path, num_images: int, *, extend: bool = True, weight: float = 1.5) -> Task:
    pair = Pair(
        main=f"{run / 'main'}@0.070", guide=f"{run / 'main'}@0.100:512", weight=weight, solver=Heun(num_steps=3)
    )
    return Task(pair=pair, first_seed=100, num_images=num_images, extend=extend)


def test_more_images_go_on_from_fewer(run: Path, tmp_path: Path) -> None:
    direct = _Worker(settings(run, None)).measure(task(run, 320))
    assert direct.new_images == 320
    worker = _Worker(settings(run, tmp_path))
    assert worker.measure(task(run, 128)).new_images == 128
    later = _Worker(settings(run, tmp_path)).measure(task(run, 320))  # another process, or another day
    assert later.new_images == 192
    assert later.fd == pytest.approx(direct.fd, rel=1e-9)
    assert (later.evaluations_main, later.evaluations_guide) == (direct.evaluations_main, direct.evaluations_guide)
    again = worker.measure(task(run, 320))
    assert (again.new_images, again.fd) == (0, later.fd)
    # Another setting, other seeds, or a single measurement have nothing to go on from.
    assert worker.measure(task(run, 128, weight=1.6)).new_images == 128
    assert worker.measure(task(run, 128, extend=False)).new_images == 128


def test_damaged_statistics_are_measured_anew(run: Path, tmp_path: Path) -> None:
    worker = _Worker(settings(run, tmp_path))
    first = worker.measure(task(run, 128))
    (file,) = (tmp_path / "partial").rglob("*.npz")
    file.write_bytes(file.read_bytes()[:-40])
    second = worker.measure(task(run, 128))
    assert (second.new_images, second.fd) == (128, first.fd)


def test_a_post_hoc_average_is_made_once_and_is_the_same(run: Path, tmp_path: Path) -> None:
    worker = _Worker(settings(run, tmp_path))
    kept = worker.load(f"{run / 'main'}@0.070")
    files = list((tmp_path / "models").glob("*.safetensors"))
    assert len(files) == 1
    made = _Worker(settings(run, None)).load(f"{run / 'main'}@0.070")
    for (name, a), (_, b) in zip(kept.state_dict().items(), made.state_dict().items(), strict=True):
        assert np.array_equal(a.numpy(), b.numpy()), name
    before = files[0].stat().st_ino
    _Worker(settings(run, tmp_path)).load(f"{run / 'main'}@0.070")
    assert files[0].stat().st_ino == before
    # A file that vanished under a worker's hands, or is damaged, does not stop it.
    files[0].write_bytes(b"torn")
    again = _Worker(settings(run, tmp_path)).load(f"{run / 'main'}@0.070")
    assert again.img_resolution == made.img_resolution


def test_settings_that_give_no_distance_are_told_from_models_that_are_not_there(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = _Worker(settings(run, None))
    monkeypatch.setattr(measuring, "_worker", worker)
    for parameter in worker.load(f"{run / 'main'}@0.070").parameters():
        parameter.data.fill_(torch.nan)
    failed = measuring._measure(task(run, 64))
    assert isinstance(failed, measuring._Failure)
    assert (failed.not_finite, "not finite" in failed.message) == (True, True)
    absent = Task(pair=Pair(main=str(run / "absent"), solver=Heun(num_steps=3)), first_seed=0, num_images=64)
    failed = measuring._measure(absent)
    assert isinstance(failed, measuring._Failure)
    assert not failed.not_finite
