"""Processes that train: one that dies is named, and the others are ended."""

import multiprocessing
from pathlib import Path

import pytest
import torch

from autoguidance.errors import UserError
from autoguidance.study.training import Job, run_jobs


def test_a_killed_process_is_named_in_one_line(tmp_path: Path) -> None:
    def kill_one(done: int, total: int, figures: dict[str, object]) -> None:
        multiprocessing.active_children()[0].kill()

    jobs = [Job(name=name, out=tmp_path / f"{name}.safetensors") for name in ("first", "second")]
    with pytest.raises(UserError, match=r"(first|second): its process ended with code -9") as caught:
        run_jobs(
            jobs,
            "digits",
            resolution=None,
            device=torch.device("cpu"),
            num_processes=2,
            seed=0,
            progress=kill_one,
        )
    assert "\n" not in str(caught.value)
    assert multiprocessing.active_children() == []


def test_a_mistake_in_a_process_keeps_its_own_words(tmp_path: Path) -> None:
    jobs = [Job(name="classifier", out=tmp_path / "classifier.safetensors")]
    with pytest.raises(UserError, match=r"classifier: .*nowhere"):
        run_jobs(jobs, str(tmp_path / "nowhere"), resolution=None, device=torch.device("cpu"), num_processes=2, seed=0)
