"""The words say no more than the figures, and the records behind them are read as they were written."""

import json

import numpy as np
import pytest

from autoguidance.report.plots import distance_over_weight, figure_images, repeats_per_method
from autoguidance.report.records import Row, file_name, read_run, split_model_name
from autoguidance.report.verdict import change, compare, figure


def row(*repeats: float) -> Row:
    return Row(method="x", fd=float(np.mean(repeats)), fd_repeats=repeats)


def test_compare_pairs_the_repeats():
    result = compare(row(0.4, 0.6), row(1.0, 1.0))
    assert result is not None
    assert result.reduction == pytest.approx(0.5)
    assert result.spread == pytest.approx(np.std([0.6, 0.4], ddof=1))
    assert result.separated
    assert result.num_repeats == 2


def test_overlapping_repeats_are_not_separated():
    result = compare(row(0.8, 1.1), row(1.0, 1.2))
    assert result is not None
    assert not result.separated
    worse = compare(row(3.0, 4.0), row(1.0, 1.2))
    assert worse is not None
    assert worse.separated
    assert worse.reduction < 0


def test_without_pairs_there_is_no_spread():
    for a, b in ((row(0.5), row(1.0)), (row(0.5, 0.6), row(1.0, 1.1, 1.2))):
        result = compare(a, b)
        assert result is not None
        assert result.spread is None
    assert compare(Row(method="x"), row(1.0)) is None
    assert compare(row(1.0), row(0.0)) is None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.52, "0.520"),
        (0.0, "0"),
        (42.345, "42.3"),
        (1234.5, "1\u2009230"),
        (-0.0123, "-0.0123"),
        (None, "–"),
        (1e-12, "1.00e-12"),
        (9.996, "10.0"),
    ],
)
def test_figure_keeps_three_digits(value, text):
    assert figure(value) == text


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("runs/main@0.070:8Mi", ("runs/main", "0.070", "8Mi")),
        ("runs/main@0.070", ("runs/main", "0.070", "")),
        ("runs/me@home", ("runs/me@home", "", "")),
        ("runs/main", ("runs/main", "", "")),
        (
            "r/snapshots/00001048576-0.050.safetensors",
            ("r/snapshots/00001048576-0.050.safetensors", "0.050", "1048576"),
        ),
    ],
)
def test_model_names_are_taken_apart(name, parts):
    assert split_model_name(name) == parts


def test_images_counts():
    assert [figure_images(count) for count in (500, 150_000, 2.1e6)] == ["500", "150k", "2.1M"]


def test_a_resumed_log_keeps_the_later_record(make_run):
    folder = make_run()
    lines = [
        {"num_images": 1, "loss": 9.0},
        {"num_images": 2, "loss": 8.0},
        {"num_images": 2, "loss": 7.0},
        {"note": "resumed"},
    ]
    (folder / "main" / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"num_im')
    images, loss = read_run(folder).losses["main"]
    assert images.tolist() == [1, 2]
    assert loss.tolist() == [9.0, 7.0]


def test_missing_means_are_made_from_the_repeats_and_infinite_ones_are_absent(make_run):
    def change(content):
        content["rows"] = [{"method": "cfg", "fd_repeats": [1.0, 3.0]}, {"method": "unguided", "fd": float("inf")}]

    unguided, cfg = read_run(make_run(change=change)).rows  # in the usual order, whatever the file's
    assert (cfg.fd, cfg.fd_std) == (2.0, pytest.approx(np.sqrt(2)))
    assert unguided.fd is None


def test_one_curve_panel_per_number_of_images(make_run):
    def change(content):
        for index, point in enumerate(content["search"]):
            point["num_images"] = 250 if index % 2 else 1000

    panels = distance_over_weight(read_run(make_run(change=change)), "p")
    # 36 guided settings, taken in turns
    assert ["18 guided settings on 250 images" in caption for caption, _ in panels] == [True, False]
    assert "18 guided settings on 1000 images" in panels[1][0]


def test_names_in_plots_are_not_taken_for_formulas(make_run):
    def change(content):
        content["rows"][0]["method"] = "a $b_1$ c"

    plot = repeats_per_method(read_run(make_run(change=change)), "p")
    assert plot is not None
    assert ">a $b_1$ c</text>" in plot[1]


def test_plots_carry_the_pages_colours_and_no_placeholder(make_run):
    records = read_run(make_run())
    plots = [*distance_over_weight(records, "p"), repeats_per_method(records, "p")]
    for plot in plots:
        assert plot is not None
        assert "var(--method-autoguidance" in plot[1]
        assert "#1100" not in plot[1]
        assert "#0101" not in plot[1]
    # log axis of w - 1, with w itself at the ticks
    assert ">1.05</text>" in plots[0][1]
    assert ">chosen</text>" in plots[0][1]


def test_a_change_has_a_real_minus_sign_and_none_at_zero():
    shown = [change(0.3684), change(-0.02, 0.014), change(0.0), change(0.0004), change(-0.0004)]
    assert shown == ["−36.8 %", "2.0 ± 1.4 %", "0.0 %", "0.0 %", "0.0 %"]


def test_images_of_a_study_belong_to_the_rows_and_stand_in_their_order(make_run):
    names = ["unguided, 12 steps", "tiny T/16", "early/é"]
    files = ("unguided", "cfg", "autoguidance")

    def rename(content):
        content["rows"] = [{"method": name, "fd": 1.0} for name in names]

    folder = make_run(change=rename)
    for file, name in zip(files, names, strict=True):
        path = folder / "images" / f"{file}.npz"
        path.rename(path.with_stem(file_name(name)))
    records = read_run(folder)
    assert list(records.images) == [*names, "cfg+interval", "real"]
    assert [row.method for row in records.rows] == names
