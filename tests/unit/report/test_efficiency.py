"""The study `efficiency` on the page: costs in the table, the front in the plot, the price of quality in a sentence."""

import re

import pytest
from html_page import plot_texts

from autoguidance.errors import UserError
from autoguidance.report.page import write_report

# Operations per image in units of 10^9, distance, on the front.
ROWS = {
    "unguided, 48 steps": (4.0, 0.70, False),
    "unguided, 6 steps": (0.5, 1.40, True),
    "unguided, 12 steps": (1.0, 0.90, True),
    "autoguidance, 12 steps": (2.0, 0.60, True),
    "autoguidance, smallest guide, 12 steps": (1.5, 0.69, True),
    "autoguidance, 6 steps": (1.1, 1.00, False),
    "cfg, 12 steps": (2.0, 0.80, False),
}


def efficiency(content):
    content["search"], content["sensitivity"] = [], {}
    content["rows"] = [
        {"method": name, "main": "m", "weight": None, "fd": fd, "fd_repeats": [fd], "seconds_per_image": giga / 100}
        for name, (giga, fd, _) in ROWS.items()
    ]
    content["efficiency"] = [
        {"method": name, "flops": giga * 1e9, "pareto": front} for name, (giga, _, front) in ROWS.items()
    ]


def change_row(name, *, fd):
    def change(content):
        efficiency(content)
        next(row for row in content["rows"] if row["method"] == name).update(fd=fd, fd_repeats=[fd])

    return change


def test_the_table_has_costs_and_the_front_the_cheapest_first(make_run, page_of):
    page = page_of(make_run(change=efficiency))
    table = [row for row in page.rows if len(row) == 6 and row[0] in ROWS]
    assert [row[0] for row in table] == sorted(ROWS, key=lambda name: ROWS[name][0])
    for name, (giga, fd, front) in ROWS.items():
        row = page.row(name, cells=6)
        assert row[1:3] == [f"{fd:.3f}" if fd < 1 else f"{fd:.2f}", f"{giga:.2f}" if giga >= 1 else f"{giga:.3f}"]
        assert row[5] == ("● on the front" if front else "")
    assert page.row("cfg, 12 steps", cells=6)[3] == "0.020"


def test_the_front_is_joined_and_labelled(make_run, page_of):
    svg = page_of(make_run(change=efficiency)).plot("Fréchet distance over GFLOPs per image of 7 rows")
    match = re.search(r'<g id="run1-cost-front">\s*<path d="([^"]*)"', svg)
    assert match is not None
    places = [tuple(map(float, pair)) for pair in re.findall(r"[ML] ([0-9.]+) ([0-9.]+)", match[1])]
    assert len(places) == 4
    assert places == sorted(places)  # SVG counts y from above: to the right and down
    # Logarithmic: from 0.5 to 1 is as far as from 1 to 2, and 1.5 lies between by its logarithm.
    (a, _), (b, _), (c, _), (d, _) = places
    assert d - b == pytest.approx(b - a, abs=1e-3)
    assert (c - b) / (d - b) == pytest.approx(0.58496, abs=1e-3)
    assert [text for text, _, _ in plot_texts(svg) if text.endswith(" steps")] == [
        "6 steps",
        "12 steps",
        "12 steps",
        "12 steps",
    ]
    assert (
        "Pareto front: unguided, 6 steps 1.40 at 0.500; unguided, 12 steps 0.900 at 1.00; autoguidance, smallest" in svg
    )
    assert {"Pareto front", "Unguided", "CFG", "Autoguidance", "autoguidance, smallest guide"} <= {
        t for t, _, _ in plot_texts(svg)
    }


def test_labels_do_not_cover_each_other(make_run, page_of):
    def change(content):
        efficiency(content)
        for number, name in enumerate(ROWS):
            content["efficiency"][number].update(flops=(1 + number / 100) * 1e9, pareto=True)
            fd = 1 - number / 500 if number else 2.0  # the first is far, so that the others crowd
            content["rows"][number].update(fd=fd, fd_repeats=[])
            assert content["rows"][number]["method"] == name

    svg = page_of(make_run(change=change)).plot("Fréchet distance over GFLOPs per image of 7 rows")
    labels = [(x, y) for text, x, y in plot_texts(svg) if text.endswith(" steps")]
    assert len(labels) == 7
    for number, (x, y) in enumerate(labels):
        for other_x, other_y in labels[:number]:
            assert abs(y - other_y) > 9 or abs(x - other_x) > 40


def test_three_labels_below_each_other_stay_inside_the_axes(make_run, page_of):
    def change(content):
        efficiency(content)
        for record, row in zip(content["efficiency"], content["rows"], strict=True):
            if not record["pareto"]:
                continue
            number = len(row["method"])  # four close together at the bottom right; the others stay where they are
            record.update(flops=(4.1 + number / 1000) * 1e9)
            row.update(fd=0.5 - number / 10000, fd_repeats=[])

    svg = page_of(make_run(change=change)).plot("Fréchet distance over GFLOPs per image of 7 rows")
    bottom = max(y for text, _, y in plot_texts(svg) if text == "GFLOPs per image") - 26  # the axis, above its numbers
    labels = sorted(y for text, _, y in plot_texts(svg) if text.endswith(" steps"))
    assert len(labels) == 4
    assert labels[2] < bottom


def test_the_price_of_the_unguided_models_quality(make_run, page_of):
    page = page_of(make_run(change=efficiency))
    # The best unguided row has 0.70; 0.69 for 1.5 is cheaper than 0.60 for 2.0.
    sentence = (
        "“autoguidance, smallest guide, 12 steps” is at least as good as the best unguided row, “unguided, 48 steps”, for "
        "0.375 times the operations: distance 0.690 against 0.700, 1.50 against 4.00 GFLOPs per image."
    )
    assert page.text.count(sentence) == 2  # the page's headline, and above the plot
    dearer = page_of(make_run("dearer", change=change_row("autoguidance, smallest guide, 12 steps", fd=0.71)))
    assert (
        "“autoguidance, 12 steps” is at least as good as the best unguided row, “unguided, 48 steps”, for 0.500"
        in dearer.text
    )


def test_repeats_that_overlap_are_named(make_run, page_of):
    def repeats(own):
        def change(content):
            efficiency(content)
            rows = {row["method"]: row for row in content["rows"]}
            rows["unguided, 48 steps"].update(fd_repeats=[0.695, 0.705])
            rows["autoguidance, smallest guide, 12 steps"].update(fd_repeats=own)

        return change

    assert "The repeats of the two overlap." in page_of(make_run("overlap", change=repeats([0.68, 0.70]))).text
    assert "The repeats of the two overlap." not in page_of(make_run("apart", change=repeats([0.689, 0.691]))).text


def test_where_autoguidance_does_not_reach_it(make_run, page_of):
    page = page_of(make_run(change=change_row("unguided, 48 steps", fd=0.5)))
    assert (
        "No row of autoguidance reaches the best unguided row, “unguided, 48 steps”, with its distance of 0.500 at 4.00 GFLOPs "
        "per image; the nearest is “autoguidance, 12 steps” with 0.600 at 2.00 GFLOPs." in page.text
    )


def nothing_measured(content):
    efficiency(content)
    for row in content["rows"]:
        row.update(fd=None, fd_repeats=[], seconds_per_image=None)


def no_unguided(content):
    efficiency(content)
    content["rows"] = [row for row in content["rows"] if not row["method"].startswith("unguided")]


def no_flops(content):
    efficiency(content)
    for record in content["efficiency"]:
        del record["flops"], record["pareto"]


@pytest.mark.parametrize("change", [nothing_measured, no_unguided, no_flops])
def test_missing_figures_do_not_break_it(make_run, page_of, change):
    page = page_of(make_run(change=change))
    assert "Quality against cost" in page.text
    assert "the best unguided row" not in page.text
    assert "None" not in page.text
    assert "nan" not in page.text.replace("nano", "")


def test_names_are_escaped(make_run, page_of):
    hostile = '<script>alert("$x_1$")</script>, 3 steps'

    def change(content):
        efficiency(content)
        content["rows"].append({"method": hostile, "fd": 0.1})
        content["efficiency"].append({"method": hostile, "flops": 1e8, "pareto": True})

    page = page_of(make_run(change=change))
    assert page.of("script") == []
    assert page.row(hostile, cells=6)[2] == "0.100"


@pytest.mark.parametrize("more", [{"flops": "many"}, {"flops": -1.0}, {"pareto": "yes"}, {"method": None}])
def test_damage_is_named(make_run, tmp_path, more):
    def damaged(content):
        efficiency(content)
        content["efficiency"][0].update(more)

    folder = make_run(change=damaged)
    with pytest.raises(UserError, match=r"results\.json"):
        write_report(folder, tmp_path / "r.html")
