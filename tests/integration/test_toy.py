"""`autoguidance toy`, short: files, figures and their schema, the same seed twice, and an output folder that cannot be one."""

import json
import math

import pytest

from autoguidance.cli import main
from autoguidance.study.toy import PANELS, ToyStudy, run_toy

SHORT = ToyStudy(
    main_iterations=64,
    guide_iterations=32,
    batch_size=256,
    num_steps=6,
    num_samples=1024,
    num_reference=1024,
    num_threshold=4096,
    seed=3,
)


@pytest.mark.slow
def test_run_toy_writes_results_and_figures_and_repeats_itself(tmp_path):
    seen = []
    results = run_toy(tmp_path / "a", SHORT, progress=lambda done, total, figures: seen.append((done, total)))
    assert seen[-1] == (64, 64)
    assert json.loads((tmp_path / "a" / "results.json").read_text()) == results

    panels = results["panels"]
    assert tuple(panels) == PANELS
    for panel in panels.values():
        assert 0 <= panel["outside_99"] <= 1
        assert 0 <= panel["coverage"] <= 1
        assert math.isfinite(panel["mean_log_density"])
        parts = panel["lost_mass"]["branches"]
        assert sum(part["lost"] for part in parts.values()) == pytest.approx(panel["lost_mass"]["sum"])
        assert sum(part["generated"] for part in parts.values()) == pytest.approx(1)
    assert panels["truth"]["outside_99"] < 0.03
    assert panels["truth"]["coverage"] > panels["none"]["coverage"]  # 64 iterations are not enough
    assert results["protocol"]["seed"] == 3

    assert len(results["figures"]) == 6
    for name in results["figures"]:
        start = (tmp_path / "a" / name).read_bytes()[:200]
        assert start.startswith(b"\x89PNG") if name.endswith("png") else b"<?xml" in start
    assert {file.name for file in (tmp_path / "a").iterdir()} == {"results.json", *results["figures"]}

    again = run_toy(tmp_path / "b", SHORT, figures=False)
    assert again["panels"] == panels


def test_an_output_folder_that_is_a_file_is_refused_before_training(tmp_path, capsys):
    (tmp_path / "taken").write_text("mine")
    assert main(["toy", "--out", str(tmp_path / "taken")]) == 2
    error = capsys.readouterr().err
    assert str(tmp_path / "taken") in error
    assert error.count("\n") == 1
    assert (tmp_path / "taken").read_text() == "mine"


def test_the_table_shows_every_panel(tmp_path, capsys, monkeypatch):
    lost = {"sum": 0.25, "sum_by_depth": {"3": 0.5}}
    panel = {
        "outside_99": 0.125,
        "mean_log_density": -3e5,
        "median_log_density": 1.5,
        "coverage": 0.75,
        "lost_mass": lost,
    }
    results = {"panels": dict.fromkeys(PANELS, panel), "figures": ["figure1-panels.png"]}
    studies = []

    def pretend(out, study, progress):
        studies.append(study)
        return results

    monkeypatch.setattr("autoguidance.study.toy.run_toy", pretend)
    assert main(["toy", "--out", str(tmp_path), "--seed", "7"]) == 0
    assert studies == [ToyStudy(seed=7)]
    output = capsys.readouterr().out
    assert output.count("12.5%") == output.count("25.0%") == output.count("50.0%") == len(PANELS)
    assert "autoguidance" in output
    assert str(tmp_path / "figure1-panels.png") in output.replace("\n", "")
