"""The page: self-contained, escaped, accessible, and whole for any run with missing parts."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from autoguidance.errors import UserError
from autoguidance.report.page import write_report


def test_the_page_asks_nobody_for_anything(make_run, page_of):
    page = page_of(make_run())
    for tag, attributes in page.elements:
        assert tag not in {"script", "link", "iframe", "object", "embed", "base", "image"}, tag
        for name in ("src", "href", "xlink:href", "srcset", "data", "action"):
            target = attributes.get(name) or ""
            assert target == "" or target.startswith(("data:image/png;base64,", "#")), target
        assert not re.search(r"url\((?!#)|@import", attributes.get("style") or "")
    policy = next(meta["content"] for meta in page.of("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert "default-src 'none'" in policy


def test_headline_figures_table_and_usage(make_run, page_of):
    folder = make_run()
    page = page_of(folder)
    # 1 - mean(.50, .53, .53) / mean(.80, .83, .84), and the standard deviation of 1 - a_r / u_r
    reduction = 1 - np.mean([0.50, 0.53, 0.53]) / np.mean([0.80, 0.83, 0.84])
    spread = np.std(1 - np.array([0.50, 0.53, 0.53]) / np.array([0.80, 0.83, 0.84]), ddof=1)
    assert (
        f"{100 * reduction:.1f} ± {100 * spread:.1f} % lower than the unguided model: 0.520 against 0.823" in page.text
    )
    assert "lower than CFG + interval: 0.520 against 0.623" in page.text
    best = [attributes for attributes in page.of("tr") if attributes.get("class") == "best"]
    assert len(best) == 1
    for shown in ("0.823 ± 0.021", "−36.8 %", "σ in (0.20, 2.0]", "23 + 9", "EMA 0.100, 20Ki images", "150\u2009000"):
        assert shown in page.text, shown
    assert f"autoguidance generate --pair {folder / 'pair.json'} --seeds 0-63" in page.text
    # main@0.070 was recorded relative to the run folder, where a folder `main` lies.
    assert f"ag.load('{folder / 'main@0.070'}')" in page.text
    assert "weight=1.25" in page.text


def test_accessible(make_run, page_of):
    page = page_of(make_run())
    assert page.of("html")[0]["lang"] == "en"
    assert len(page.of("h1")) == 1
    assert all(len(image["alt"] or "") > 8 for image in page.of("img"))
    assert len(page.of("caption")) == len(page.of("table")) >= 4
    plots = [svg for svg in page.of("svg") if svg.get("class") == "plot"]
    assert len(plots) == 3
    assert all("istance" in (svg["aria-label"] or "") or "loss" in (svg["aria-label"] or "") for svg in plots)
    identifiers = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(set(identifiers)) == len(identifiers)
    known = set(identifiers)
    assert all((use.get("xlink:href") or "#").removeprefix("#") in known for use in page.of("use"))


def test_images_are_small_and_enlarged_by_the_browser(make_run, page_of):
    images = page_of(make_run()).of("img")
    assert len(images) == 10 * 5  # classes times methods with "real"
    for image in images:
        assert image["class"] == "pixels"
        # four 8-pixel images and three gaps of one pixel, five times
        assert (image["width"], image["height"]) == (str((4 * 8 + 3) * 5), str(8 * 5))
    assert any("seeds 12, 13, 14, 15" in (image["alt"] or "") for image in images)


def test_text_from_outside_is_escaped(make_run, page_of):
    hostile = '<script>alert("x")</script>'

    def change(content):
        content["dataset"]["class_names"][3] = hostile
        content["dataset"]["name"] = hostile + " $x_1$"
        content["protocol"][hostile] = {"<b>": hostile}
        content["training"]["main"]["preset"] = hostile
        content["rows"].append({"method": hostile, "main": hostile, "guide": hostile, "weight": 2.0, "fd": 1.0})
        content["search"].append({"method": hostile, "main": hostile, "guide": "", "weight": 2.0, "fd": 1.0})

    page = page_of(make_run(change=change))
    assert page.of("script") == []
    assert page.text.count(hostile) >= 6  # shown as text
    assert any(hostile in (image["alt"] or "") for image in page.of("img"))


def drop(*names):
    def change(content):
        for name in names:
            del content[name]

    return change


def only(*methods):
    def change(content):
        for key in ("rows", "search"):
            content[key] = [item for item in content[key] if item["method"] in methods]

    return change


def no_figures(content):
    for row in content["rows"]:
        row.update(fd=None, fd_std=None, fd_repeats=[], weight=None, seconds_per_image=None, evaluations_main=None)


def bare_rows(content):
    content["rows"] = [{"method": "unguided"}, {"method": "autoguidance", "fd": 0.5}]


@pytest.mark.parametrize(
    "change",
    [
        drop("search"),
        drop("dataset", "training", "baseline", "seconds", "protocol"),
        only("unguided"),
        only("autoguidance"),
        only("cfg"),
        only(),
        no_figures,
        bare_rows,
        lambda content: content["dataset"].update(class_names=[]),
        lambda content: content["baseline"].update(real_half=None),
        lambda content: [point.update(num_images=None, fd=None) for point in content["search"]],
        lambda content: [row.update(interval=[None, 2.0]) for row in content["rows"]],
        lambda content: [point.update(weight=1.5) for point in content["search"]],
        lambda content: [row.update(fd=0.0, fd_repeats=[0.0, 0.0]) for row in content["rows"]],
    ],
)
@pytest.mark.parametrize("parts", [True, False])
def test_missing_parts_do_not_break_it(make_run, page_of, change, parts):
    page = page_of(make_run(change=change, images=parts, logs=parts))
    assert "Methods compared" in page.text
    assert ("Images at equal seeds" in page.text) is parts
    assert ("Training loss" in page.text) is parts
    assert "nan" not in re.sub(r"nano", "", page.text)
    assert "None" not in page.text


def test_no_claim_where_repeats_overlap_or_autoguidance_loses(make_run, page_of):
    def set_fd(values):
        def change(content):
            content["rows"][-1].update(fd=float(np.mean(values)), fd_std=0.1, fd_repeats=values)

        return change

    overlap = page_of(make_run("overlap", change=set_fd([0.70, 0.81, 0.85])))
    assert "makes no clear difference to the unguided model" in overlap.text
    worse = page_of(make_run("worse", change=set_fd([1.0, 1.1, 1.2])))
    assert re.search(
        r"Autoguidance has a Fréchet distance [0-9.]+ ± [0-9.]+ % higher than the unguided model", worse.text
    )
    once = page_of(make_run("once", change=set_fd([0.5])))
    assert "measured once, so the spread is unknown" in once.text


def test_unlabelled_images_and_colour_at_64_pixels(make_run, page_of):
    folder = make_run(change=lambda content: content["dataset"].update(class_names=[]), shape=(3, 64, 64))
    for file in (folder / "images").glob("*.npz"):
        with np.load(file) as arrays:
            np.savez(file, seeds=arrays["seeds"], images=arrays["images"])
    page = page_of(folder)
    assert "unlabelled" in page.text
    # three images of 64 pixels a row, twelve rows, five columns
    assert [image["width"] for image in page.of("img")] == [str(3 * 64 + 2)] * (12 * 5)


def test_large_images_are_reduced(make_run, tmp_path):
    page = write_report(make_run(shape=(3, 256, 256)), tmp_path / "large.html")
    # 10 classes x 5 methods x 2 images x 96^2 pixels x 3 bytes of noise, in base64
    assert page.stat().st_size < 10 * 5 * 2 * 96**2 * 3 * 4 / 3 * 1.1 + 200_000


def test_several_runs_on_one_page(make_run, page_of):
    first = make_run("first")
    second = make_run("second", change=lambda content: content["dataset"].update(name="other <data>"))
    page = page_of(first, second)
    assert len(page.of("section")) == 2
    assert [link["href"] for link in page.of("a")] == ["#run1", "#run2"]
    assert "other <data>: Autoguidance has a Fréchet distance" in page.text


def test_the_same_run_gives_the_same_page(make_run, tmp_path):
    folder = make_run()
    assert (
        write_report(folder, tmp_path / "a.html").read_bytes() == write_report(folder, tmp_path / "b.html").read_bytes()
    )


def refused(folders, out) -> str:
    with pytest.raises(UserError) as error:
        write_report(folders, out)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "{}",
        '{"rows": {}}',
        '{"rows": [1]}',
        '{"rows": [{"fd": 1}]}',
        '{"rows": [{"method": "cfg", "fd": "low"}]}',
        '{"rows": [{"method": "cfg", "fd": true}]}',
        '{"rows": [{"method": "cfg", "fd_repeats": 3}]}',
        '{"rows": [{"method": "cfg", "interval": [1]}]}',
        '{"rows": [], "search": [{"method": "cfg", "fd": []}]}',
        '{"rows": [], "baseline": 3}',
        '{"panels": {}}',
    ],
)
def test_damaged_results_are_named_and_the_old_page_stays(make_run, tmp_path, content):
    folder = make_run()
    out = write_report(folder, tmp_path / "report.html")
    before = out.read_bytes()
    (folder / "results.json").write_text(content)
    assert "results.json" in refused(folder, out)
    assert out.read_bytes() == before


def test_damaged_images_are_named(make_run, tmp_path):
    folder = make_run()
    file = folder / "images" / "cfg.npz"
    file.write_bytes(file.read_bytes()[:300])
    assert str(file) in refused(folder, tmp_path / "r.html")
    np.savez(file, images=np.zeros((3, 8, 8), np.uint8), seeds=np.arange(3))
    assert str(file) in refused(folder, tmp_path / "r.html")


class Payload:
    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self):
        return Path.touch, (self.victim,)


def test_a_pickle_inside_the_images_is_never_run(make_run, tmp_path):
    folder = make_run()
    file, victim = folder / "images" / "cfg.npz", tmp_path / "victim"
    np.savez(file, images=np.array([Payload(victim)], dtype=object), seeds=np.arange(1))
    assert str(file) in refused(folder, tmp_path / "r.html")
    assert not victim.exists()


def test_wrong_paths_are_named(make_run, tmp_path):
    assert "no run folder" in refused([], tmp_path / "r.html")
    assert "absent" in refused(tmp_path / "absent", tmp_path / "r.html")
    (tmp_path / "empty").mkdir()
    assert "has no results.json" in refused(tmp_path / "empty", tmp_path / "r.html")
    folder = make_run()
    assert "is a folder" in refused(folder, tmp_path)
    (tmp_path / "file").write_text("")
    assert "cannot" in refused(folder, tmp_path / "file" / "r.html")


def test_a_moved_run_folder_still_reports(make_run, page_of, tmp_path):
    folder = make_run()
    moved = Path(shutil.move(folder, tmp_path / "it's moved"))
    page = page_of(moved)
    assert "it'\"'\"'s moved/pair.json' --seeds" in page.text  # quoted for a shell
