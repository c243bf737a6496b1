"""`autoguidance data inspect`: the figures of a usable set, every problem of another."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from autoguidance.cli.data import data_app
from autoguidance.data import DataError, open_data
from autoguidance.data.inspection import inspect_data

MakeFolder = Callable[..., Path]
Rgb = Callable[..., np.ndarray]


def test_report_of_a_usable_set(make_folder: MakeFolder, rgb: Rgb) -> None:
    root = make_folder({"cat/1.png": rgb(1), "cat/2.png": rgb(2), "dog/3.png": rgb(3), "dog/a.txt": b""})
    report, error = inspect_data(root)
    assert error is None
    assert report["fingerprint"] == open_data(root).fingerprint
    assert report["classes"] == {"cat": 2, "dog": 1}
    assert report["formats"] == {"PNG": 3}
    assert report["ignored"] == {"txt": 1}
    values = np.stack([rgb(seed) for seed in (1, 2, 3)]) / 127.5 - 1
    assert report["encoded"]["mean"] == pytest.approx(values.mean(), abs=1e-6)
    assert report["encoded"]["std"] == pytest.approx(values.std(), abs=1e-6)
    assert json.loads(json.dumps(report)) == report


def test_command_prints_figures(make_folder: MakeFolder, rgb: Rgb) -> None:
    root = make_folder({"cat/1.png": rgb(1), "dog/3.png": rgb(3)[:6]})
    result = CliRunner().invoke(data_app, ["inspect", str(root), "--resolution", "4"])
    assert result.exit_code == 0, result.output
    assert "2 of 4 x 4, RGB" in result.output
    assert "classes      2" in result.output
    assert open_data(root, resolution=4).fingerprint in result.output


def test_command_prints_every_problem_and_fails(make_folder: MakeFolder) -> None:
    root = make_folder({f"{index:02d}.png": b"" for index in range(30)})
    result = CliRunner().invoke(data_app, ["inspect", str(root)])
    assert isinstance(result.exception, DataError)  # the command line's main() turns it into one line and exit code 2
    assert [line for line in result.output.splitlines() if line.startswith("problem: ")] == [
        f"problem: {index:02d}.png: empty file" for index in range(30)
    ]
    result = CliRunner().invoke(data_app, ["inspect", str(root), "--json"])
    assert json.loads(result.output)["problems"][29] == {"where": "29.png", "what": "empty file"}
