"""The study `gap` on the page: figures stand in their cells, curves are the guides' own, old files and damage are told apart."""

import re

import numpy as np
import pytest
from html_page import plot_texts

from autoguidance.errors import UserError
from autoguidance.report.page import write_report

# Distance and weight by guide; tiny T/16 is the best, nano T/4 was not measured.
FOUND = {
    "tiny T/64": (0.80, 1.2),
    "tiny T/16": (0.40, 1.7),
    "tiny T/4": (0.60, 2.25),
    "nano T/64": (0.90, 1.1),
    "nano T/16": (0.50, 1.4),
}
SHARES = {"T/64": 1 / 64, "T/16": 1 / 16, "T/4": 1 / 4}
VERDICTS = {"T/64": "too far", "T/16": "compatible", "T/4": "too similar"}
WEIGHTS = (1.1, 1.2, 1.4, 1.7, 2.25)
CAPTION = "What the diagnosis said"


def expected(guide: str, weight: float) -> float:
    fd, best = FOUND[guide]
    return fd + 0.02 + abs(float(np.log(weight / best)))


def gap(content):
    unguided = {"method": "unguided", "main": "main@0.050", "fd": 0.8, "fd_repeats": [0.79, 0.81]}
    content["rows"] = [unguided] + [
        {
            "method": name,
            "main": "main@0.050",
            "guide": "g",
            "weight": w,
            "fd": fd,
            "fd_repeats": [fd - 0.01, fd + 0.01],
        }
        for name, (fd, w) in FOUND.items()
    ]
    content["search"] = [{"method": "unguided", "fd": 0.85, "num_images": 500}] + [
        {"method": name, "main": "m", "guide": "g", "weight": w, "fd": expected(name, w) + more, "num_images": 500}
        for name in FOUND
        for w in WEIGHTS
        for more in (0, 0.3)
    ]
    content["sensitivity"] = {
        name: {
            "axes": {
                "weight": {
                    "best": w,
                    "curve": [{"value": v, "fd": expected(name, v), "low": 0.1, "high": 2.0} for v in WEIGHTS],
                    "measured": [{"value": w, "fd": expected(name, w)}],
                }
            },
            "edges": [],
        }
        for name, (_, w) in FOUND.items()
        if w in WEIGHTS
    }
    content["guides"] = [
        {
            "guide": f"{size} {training}",
            "size": size,
            "share": share,
            "difference": 1.25,
            "verdict": VERDICTS[training],
            "reason": "because",
            "correlation": -0.012 if training == "T/64" else 0.051,
            "correlation_se": 0.0031,
            "start_weight": 1.32,
        }
        for size in ("tiny", "nano")
        for training, share in SHARES.items()
    ]


def test_each_distance_stands_in_the_cell_of_its_size_and_training(make_run, page_of):
    page = page_of(make_run(change=gap))
    svg = page.plot("Fréchet distance over the guide&#x27;s size and training")
    texts = plot_texts(svg)
    column = {text: x for text, x, _ in texts if text in SHARES}
    line = {text: y for text, _, y in texts if text in ("tiny", "nano")}
    assert column["T/64"] < column["T/16"] < column["T/4"]
    assert line["tiny"] < line["nano"]
    found = {}
    for text, x, y in texts:
        if re.fullmatch(r"0\.\d+|–", text):
            training = min(column, key=lambda name: abs(column[name] - x))
            size = min(line, key=lambda name: abs(line[name] - y))
            found[f"{size} {training}"] = text
    assert found == {**{name: f"{fd:.3f}" for name, (fd, _) in FOUND.items()}, "nano T/4": "–"}
    assert {f"w = {w:g}" for _, w in FOUND.values()} <= {text for text, _, _ in texts}
    # The lower, the more opaque: 0.4 is the least and 0.9 the largest, 0.6 lies between by its logarithm.
    opacities = [float(value) for value in re.findall(r"var\(--method-autoguidance[^;\"]*; opacity: ([0-9.]+)", svg)]
    between = 0.5 + (0.04 - 0.5) * np.log(0.6 / 0.4) / np.log(0.9 / 0.4)
    assert opacities[:4] == pytest.approx([0.5 - 0.46 * np.log(2) / np.log(2.25), 0.5, between, 0.04], abs=1e-4)


def test_verdict_and_outcome_stand_side_by_side(make_run, page_of):
    page = page_of(make_run(change=gap))
    minus, plus = "−0.012 ± 0.0031", "0.051 ± 0.0031"
    assert page.row("tiny T/64", cells=9)[1:] == [
        "1.6 %",
        "too far",
        "1.2",
        minus,
        "1.32",
        "1.2",
        "0.800 ± 0.014",
        "0.0 %",
    ]
    best = page.row("tiny T/16best", cells=9)
    assert best[1:] == ["6.2 %", "compatible", "1.2", plus, "1.32", "1.7", "0.400 ± 0.014", "−50.0 %"]
    assert page.row("nano T/4", cells=9)[5:] == ["1.32", "–", "–", "–"]
    assert (
        "The best guide, tiny T/16, was diagnosed as “compatible”. Mean distance by verdict: “too far” 0.850 (2 guides), "
        "“compatible” 0.450 (2 guides), “too similar” 0.600 (1 guide)." in page.text
    )


def test_the_curves_are_those_of_the_guides_of_one_size(make_run, page_of):
    page = page_of(make_run(change=gap))
    tiny = page.plot("Fréchet distance over guidance weight, guides of size tiny")
    # Each lowest where its own best is: the expected curve, 0.02 above the confirmed distance.
    assert "T/64: lowest 0.820 at w = 1.2; T/16: lowest 0.420 at w = 1.7; T/4: lowest 0.620 at w = 2.25." in tiny
    nano = page.plot("Fréchet distance over guidance weight, guides of size nano")
    assert "T/64: lowest 0.920 at w = 1.1; T/16: lowest 0.520 at w = 1.4." in nano
    assert [text for text, _, _ in plot_texts(nano) if text in SHARES or text == "unguided"] == [
        "T/64",
        "T/16",
        "unguided",
    ]
    # Fifteen guides as methods of one plot could not be told apart.
    assert "guided settings" not in page.text


def test_without_a_surrogate_the_curves_are_what_was_measured_at_one_number_of_images(make_run, page_of):
    def change(content):
        gap(content)
        content["sensitivity"] = {}
        # Far lower, but on other numbers of images, which do not compare.
        content["search"] += [{"method": "tiny T/16", "weight": 1.1, "fd": 0.001, "num_images": 100}]

    page = page_of(make_run(change=change))
    tiny = page.plot("Fréchet distance over guidance weight, guides of size tiny")
    assert "T/16: lowest 0.420 at w = 1.7" in tiny
    assert "on 500 images each. Lines: the best that the search measured at each w" in page.text


def test_files_of_before_whose_size_was_the_figure_of_the_diagnosis(make_run, page_of):
    def change(content):
        gap(content)
        for guide in content["guides"]:
            guide["size"] = guide.pop("difference")

    page = page_of(make_run(change=change))
    texts = {text for text, _, _ in plot_texts(page.plot("Fréchet distance over the guide&#x27;s size and training"))}
    assert {"tiny", "nano"} <= texts
    assert page.row("tiny T/16best", cells=9)[3] == "1.2"


def drop(*keys):
    def change(content):
        gap(content)
        for key in keys:
            for guide in content["guides"]:
                del guide[key]

    return change


def nothing_measured(content):
    gap(content)
    content["rows"], content["search"], content["sensitivity"] = [], [], {}


def zeros_and_nulls(content):
    gap(content)
    for row in content["rows"]:
        row.update(fd=0.0, fd_repeats=[0.0])
    for guide in content["guides"]:
        guide.update(correlation=None, correlation_se=None, difference=float("inf"))


@pytest.mark.parametrize(
    "change", [drop("share", "verdict"), drop("size", "difference", "correlation"), nothing_measured, zeros_and_nulls]
)
def test_missing_figures_do_not_break_it(make_run, page_of, change):
    page = page_of(make_run(change=change))
    assert "How bad should the guide be?" in page.text
    assert "nan" not in page.text.replace("nano", "")
    assert "None" not in page.text
    assert "inf" not in page.text.replace("influence", "").replace("information", "")


def test_names_are_escaped(make_run, page_of):
    hostile = '<script>alert("$x_1$")</script> T/4'

    def change(content):
        gap(content)
        content["rows"].append({"method": hostile, "weight": 1.5, "fd": 0.5})
        content["guides"].append({"guide": hostile, "size": hostile, "share": 0.25, "verdict": hostile})

    page = page_of(make_run(change=change))
    assert page.of("script") == []
    assert hostile in page.text


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.update(guides={}) or content.update(guides={"a": 1}),
        lambda content: content["guides"][0].pop("guide"),
        lambda content: content["guides"][0].update(share="a quarter"),
        lambda content: content["guides"][0].update(difference=[1]),
        lambda content: content["sensitivity"]["tiny T/16"]["axes"]["weight"].update(curve=[{"value": 1}]),
        lambda content: content["sensitivity"].update({"tiny T/16": 3}),
    ],
)
def test_damage_is_named(make_run, tmp_path, change):
    def damaged(content):
        gap(content)
        change(content)

    folder = make_run(change=damaged)
    with pytest.raises(UserError, match=r"results\.json"):
        write_report(folder, tmp_path / "r.html")
