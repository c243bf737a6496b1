"""The study `domains` on the page: one table over all data sets before their sections, changes in percent."""

import json
import re

import numpy as np
import pytest

from autoguidance.errors import UserError
from autoguidance.report.page import write_report

# Repeats by data set and method; tiles have no labels, and on scans autoguidance and CFG overlap.
FOUND = {
    "clothing": {"unguided": (0.8, 0.82), "cfg": (0.6, 0.62), "cfg+interval": (0.7, 0.72), "autoguidance": (0.5, 0.51)},
    "tiles": {"unguided": (4.0, 4.1), "autoguidance": (3.0, 3.1)},
    "scans": {"unguided": (0.3, 0.31), "cfg": (0.2, 0.22), "autoguidance": (0.21, 0.23)},
}


def rows_of(methods, **more):
    return [
        {"method": m, "fd": float(np.mean(r)), "fd_std": float(np.std(r, ddof=1)), "fd_repeats": list(r), **more}
        for m, r in methods.items()
    ]


@pytest.fixture
def study(make_run, tmp_path):
    """The folder of a study: a run folder per data set beside domains.json."""
    for data, methods in FOUND.items():

        def change(content, data=data, methods=methods):
            content["dataset"]["name"] = data
            content["rows"] = rows_of(methods)

        make_run(f"study/{data}", change=change, images=False, logs=False)
    folder = tmp_path / "study"
    rows = [row for data, methods in FOUND.items() for row in rows_of(methods, data=data)]
    (folder / "domains.json").write_text(json.dumps({"study": "domains", "rows": rows}))
    return folder


def change(a, b) -> str:
    ratios = np.array(a) / np.array(b)
    value = 100 * (np.mean(a) / np.mean(b) - 1)
    return f"{value:.1f} ± {100 * np.std(ratios, ddof=1):.1f} %".replace("-", "−")


def test_data_sets_are_rows_and_methods_columns(study, page_of):
    page = page_of(study)
    found = FOUND["clothing"]
    header = page.row("Data set", cells=7)
    assert header[1:] == [
        *("Unguided", "CFG", "CFG + interval", "Autoguidance"),
        *("autoguidanceagainst unguided", "autoguidanceagainst best CFG"),
    ]
    clothing = page.row("clothing", cells=7)
    assert clothing[1:5] == ["0.810± 0.014", "0.610± 0.014", "0.710± 0.014", "0.505± 0.0071"]
    assert clothing[5] == change(found["autoguidance"], found["unguided"])
    # The better of the two CFG rows is the one without an interval.
    assert clothing[6] == change(found["autoguidance"], found["cfg"]) + "to CFG"
    tiles = page.row("tiles", cells=7)
    assert tiles[2:4] == ["–", "–"]
    assert tiles[6] == "–"
    scans = page.row("scans", cells=7)
    assert scans[6].endswith("to CFG, repeats overlap")
    assert not scans[6].startswith("−")


def test_the_best_of_a_row_is_bold_and_the_table_comes_first(study, page_of):
    page = page_of(study)
    top = page.source[page.source.index("<main>") :]
    assert top.startswith("<main><h2>All data sets</h2>")
    table = top[: top.index("</table>")]
    assert re.findall(r"<b>([^<]*)</b>", table) == ["0.505", "3.05", "0.210"]
    assert len(page.of("section")) == 3
    assert top.index("</table>") < top.index("<section>")


def test_the_wins_are_counted(study, page_of):
    text = page_of(study).text
    assert "lower distance than the unguided model on 3 of 3 data sets (on 3 without overlap of the repeats)." in text
    assert "lower distance than the best CFG on 1 of 2 data sets (on 1 without overlap of the repeats)." in text


def test_one_data_set_alone(study, page_of):
    content = json.loads((study / "domains.json").read_text())
    content["rows"] = [row for row in content["rows"] if row["data"] == "tiles"]
    (study / "domains.json").write_text(json.dumps(content))
    page = page_of(study)
    assert page.row("tiles", cells=5)[1] == "4.05± 0.071"
    assert "Methods compared" in page.text


def test_a_figure_that_is_missing(study, page_of):
    content = json.loads((study / "domains.json").read_text())
    content["rows"][0].update(fd=None, fd_std=None, fd_repeats=[])
    (study / "domains.json").write_text(json.dumps(content))
    clothing = page_of(study).row("clothing", cells=7)
    assert clothing[1] == "–"
    assert clothing[5] == "–"


def test_names_are_escaped(study, page_of):
    hostile = "<b onclick=x>&"
    (study / "tiles").rename(study / hostile)
    text = (study / "domains.json").read_text().replace('"tiles"', json.dumps(hostile)).replace('"cfg"', '"<i>"')
    (study / "domains.json").write_text(text)
    page = page_of(study)
    assert page.row(hostile, cells=7)[1] == "4.05± 0.071"
    assert page.of("i") == []
    assert all("onclick" not in attributes for attributes in page.of("b"))


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{}",
        '{"rows": []}',
        '{"rows": [{"method": "cfg", "fd": 1}]}',
        '{"rows": [{"data": "../tiles", "method": "cfg", "fd": 1}]}',
        '{"rows": [{"data": "tiles", "method": "cfg", "fd": "low"}]}',
    ],
)
def test_damage_is_named(study, tmp_path, text):
    (study / "domains.json").write_text(text)
    with pytest.raises(UserError, match=r"domains\.json"):
        write_report(study, tmp_path / "r.html")
