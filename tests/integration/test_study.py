"""`autoguidance study`: from images to rows, records and a page; the same command goes on; what cannot be is refused in one line."""

import json
from pathlib import Path

import numpy as np
import pytest

from autoguidance.cli import main
from autoguidance.report.records import file_name
from autoguidance.storage import read_json, read_json_lines
from autoguidance.study.catalogue import STUDIES
from autoguidance.study.cost import evaluation_flops
from autoguidance.study.efficiency import pareto
from autoguidance.zoo import Pair

SHORT = "--preset tiny --images 512 --batch 32 --num 128 --search-num 128 --repeats 2 --measurements 2 --steps 2 --device cpu --processes 1"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 small images of two classes."""
    generator = np.random.default_rng(0)
    labels = np.arange(300) % 2
    images = generator.integers(0, 120, (300, 8, 8)) + 100 * labels[:, None, None]
    path = tmp_path_factory.mktemp("data") / "blobs.npz"
    np.savez(path, images=images.astype(np.uint8), labels=labels)
    return path


def short(study: str, data: Path, out: Path, *more: str) -> list[str]:
    return ["study", study, str(data), "--out", str(out), *SHORT.split(), "--features", "pixels", *more]


@pytest.mark.slow
def test_methods(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "methods"
    assert main(short("methods", data, out)) == 0, capsys.readouterr().err
    results = read_json(out / "results.json")
    rows = {row["method"]: row for row in results["rows"]}
    assert set(rows) == {
        "unguided",
        "cfg",
        "cfg+interval",
        "autoguidance",
        "same EMA for both",
        "reduced training only",
        "reduced capacity only",
        "early snapshot",
        "truncation",
        "mixed",
    }
    for row in rows.values():
        assert len(row["fd_repeats"]) == 2
        assert row["fd"] == pytest.approx(sum(row["fd_repeats"]) / 2)
        assert 0 <= row["recall"] <= 1
        assert len(row["kid_repeats"]) == 2
    assert rows["reduced training only"]["guide"].startswith("retrained@")
    assert rows["reduced capacity only"]["guide"].endswith(":512")
    assert rows["early snapshot"]["guide"].startswith("main@")
    assert rows["unguided"]["evaluations_guide"] == rows["truncation"]["evaluations_guide"] == 0
    assert rows["mixed"]["evaluations_guide"] == 2 * rows["autoguidance"]["evaluations_guide"]
    # Equal budgets: two full measurements of 128 images each, but unguided may have no more settings to look at.
    spent = {name: sum(r["num_images"] for r in results["search"] if r["method"] == name) for name in rows}
    assert set(spent.values()) == {256}
    # Confirmed on the same fresh seeds, each once.
    confirmed = read_json_lines(out / "compare.jsonl")
    assert sorted((r["method"], r["first_seed"]) for r in confirmed) == sorted((m, s) for m in rows for s in (0, 128))
    assert Pair.load(out / "pair.json").method == "autoguidance"
    assert "reduced capacity only" in (out / "report.html").read_text()
    # The same command again measures nothing.
    before = (out / "compare.jsonl").read_bytes()
    (out / "report.html").unlink()
    assert main(short("methods", data, out)) == 0
    assert (out / "compare.jsonl").read_bytes() == before
    # Another request does not go on in this folder.
    capsys.readouterr()
    assert main(short("methods", data, out, "--seed", "1")) == 2
    assert "holds a study with other settings (seed)" in capsys.readouterr().err


@pytest.mark.slow
def test_domains_and_no_labels(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = tmp_path / "plain.npz"
    with np.load(data) as arrays:
        np.savez(plain, images=arrays["images"])
    out = tmp_path / "domains"
    command = short("domains", data, out)
    command.insert(3, str(plain))
    assert main(command) == 0, capsys.readouterr().err
    rows = read_json(out / "domains.json")["rows"]
    found = {name: [row["method"] for row in rows if row["data"] == name] for name in ("blobs", "plain")}
    assert found == {
        "blobs": ["unguided", "cfg", "cfg+interval", "autoguidance"],
        "plain": ["unguided", "autoguidance"],
    }
    assert (out / "report.html").stat().st_size > 10_000

    # Another study takes these networks; one of another seed cannot, and says so.
    again = tmp_path / "again"
    quick = ["--measurements", "1", "--repeats", "1", "--trained"]
    assert main(short("domains", data, again, *quick, str(out))) == 0, capsys.readouterr().err
    for run in ("main", "guide", "unconditional"):
        log = Path("blobs", run, "log.jsonl")
        assert (again / log).read_bytes() == (out / log).read_bytes()
    assert main(short("mixing", data, tmp_path / "other", "--seed", "1", "--trained", str(out / "blobs"))) == 2
    assert "none of main, guide, unconditional is there" in capsys.readouterr().err


@pytest.mark.slow
def test_gap(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "gap"
    command = short("gap", data, out, "--measurements", "1", "--repeats", "1", "--sigma-max", "20")
    assert main([*command, "--dtype", "bfloat16"]) == 0, capsys.readouterr().err
    results = read_json(out / "results.json")
    assert results["protocol"]["solver"]["sigma_max"] == 20
    assert "networks sampled in bfloat16" in results["protocol"]["notes"]
    assert read_json(out / "main" / "config.json")["train"]["dtype"] == "bfloat16"
    assert main(command) == 2
    assert "with other settings (dtype)" in capsys.readouterr().err
    assert [g["guide"] for g in results["guides"]] == [
        f"{s} T/{k}" for s in ("tiny", "nano") for k in (64, 32, 16, 8, 4)
    ]
    assert len(results["rows"]) == 11
    assert {g["verdict"] for g in results["guides"]} <= {"too similar", "compatible", "too far"}
    assert [g["size"] for g in results["guides"]] == ["tiny"] * 5 + ["nano"] * 5
    assert all(g["difference"] > 0 for g in results["guides"])


@pytest.mark.slow
def test_efficiency(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "efficiency"
    command = short("efficiency", data, out, "--measurements", "1", "--repeats", "1", "--sigma-min", "0.01", "--json")
    assert main(command) == 0, capsys.readouterr().err
    results = json.loads(capsys.readouterr().out)["efficiency"]
    flops = {item["method"]: item["flops"] for item in results["efficiency"]}
    # 2 N - 1 evaluations for N steps.
    assert flops["unguided, 4 steps"] / flops["unguided, 1 steps"] == pytest.approx(7)
    assert flops["unguided, 1 steps"] == pytest.approx(evaluation_flops(str(out / "main")))
    expected = flops["unguided, 2 steps"] + 3 * evaluation_flops(str(out / "guide"))
    assert flops["autoguidance, 2 steps"] == pytest.approx(expected)
    assert any(item["pareto"] for item in results["efficiency"])
    assert Pair.load(out / "pair.json").solver.sigma_min == 0.01


@pytest.mark.slow
def test_mixing(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "mixing"
    assert main(short("mixing", data, out, "--measurements", "1", "--repeats", "1")) == 0, capsys.readouterr().err
    results = read_json(out / "results.json")
    rows = {row["method"]: row for row in results["rows"]}
    cells = {record["method"]: (record["weight"], record["alpha"]) for record in results["mixing"]}
    assert set(rows) == {"unguided", "mixed", *cells}
    assert len(cells) == 25
    # One choice of networks for the whole grid; at its ends one guide is neither named nor called.
    names = {(rows[m]["main"], rows[m]["guide"], rows[m]["unconditional"]) for m, (_, a) in cells.items() if 0 < a < 1}
    assert names == {(rows["mixed"]["main"], rows["mixed"]["guide"], rows["mixed"]["unconditional"])}
    for name, (weight, alpha) in cells.items():
        row = rows[name]
        assert row["main"] == rows["mixed"]["main"]
        assert row["guide"] == rows["mixed"]["unconditional" if alpha == 0 else "guide"]
        assert row["weight"] == pytest.approx(weight if alpha in (0, 1) else 1 + alpha * (weight - 1))
        assert row.get("cfg_weight", 0) == (pytest.approx(1 + (1 - alpha) * (weight - 1)) if 0 < alpha < 1 else 0)
        assert row["evaluations_guide"] == row["evaluations_main"] * (1 if alpha in (0, 1) else 2)
    page = (out / "report.html").read_text()
    assert "How much of which guidance?" in page
    assert page.count("w = 2.5, alpha = 0.25, seeds 0, 1, 2, 3") == 1

    plain = tmp_path / "plain.npz"
    with np.load(data) as arrays:
        np.savez(plain, images=arrays["images"])
    assert main(short("mixing", plain, tmp_path / "no")) == 2
    assert "no classes, so there is no CFG to mix" in capsys.readouterr().err


@pytest.mark.slow
def test_degradations(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "degradations"
    assert main(short("degradations", data, out, "--measurements", "1", "--repeats", "1")) == 0, capsys.readouterr().err
    results = read_json(out / "results.json")
    rows = {row["method"]: row for row in results["rows"]}
    kinds = {record["method"]: record["kind"] for record in results["degradations"]}
    assert set(rows) == set(kinds)
    assert [list(kinds.values()).count(k) for k in ("intact", "damaged", "matched", "mismatched", "intact main")] == [
        1,
        4,
        2,
        2,
        2,
    ]
    assert {
        (row.get("main_degraded"), row.get("guide_degraded")) for m, row in rows.items() if kinds[m] == "matched"
    } == {
        ("dropout 5%", "dropout 10%"),
        ("noise 10%", "noise 20%"),
    }
    assert len({row["main"] for row in rows.values()}) == 1  # one width for all
    assert len({row["fd"] for row in rows.values()}) == len(rows)  # every damage changes the images
    for record in results["degradations"]:
        lost = rows[record["without_guidance"]]["fd"] - rows["unguided"]["fd"]
        won = rows[record["without_guidance"]]["fd"] - rows[record["method"]]["fd"]
        assert record["recovered"] == (pytest.approx(won / lost) if lost > 0 else None)
    assert not (out / "pair.json").exists()
    page = (out / "report.html").read_text()
    part = page[page.index("Does damage of the same kind cancel?") :].partition("<h3>")[0]
    assert "main with noise 10%, guide with noise 20%" in part
    assert part.count("guide damaged in the other way") == 2


def test_pareto() -> None:
    points = {"a": (1.0, 5.0), "b": (2.0, 5.0), "c": (2.0, 3.0), "d": (3.0, 4.0), "e": (9.0, 1.0)}
    assert list(pareto(points)) == ["a", "c", "e"]


def test_names_and_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "--list"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in STUDIES)
    for arguments, message in (
        (["study"], "name a study"),
        (["study", "everything"], "there is no study 'everything'"),
        (["study", "gap", "digits", "digits"], "takes one data set, not 2"),
        (["study", "domains", "a/x.zip", "b/x.zip"], "two data sets are called x"),
        (["study", "gap", str(tmp_path / "nowhere"), "--out", str(tmp_path / "o")], "nowhere"),
        (["study", "gap", "--sigma-max", "0", "--device", "cpu", "--out", str(tmp_path / "o")], "sigma"),
        (["study", "gap", "--dtype", "float16", "--device", "cpu"], "float16 needs a GPU"),
    ):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert message in error
        assert len(error.strip().splitlines()) == 1
    assert file_name("autoguidance, 6 steps/é") == "autoguidance,-6-steps-é"
