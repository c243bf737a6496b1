"""A run folder of the structure that `autoguidance run` writes; its figures are invented and serve these tests only."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from html_page import Page

from autoguidance.report.page import write_report

METHODS = ("unguided", "cfg", "cfg+interval", "autoguidance")
_REPEATS = {
    "unguided": (0.80, 0.83, 0.84),
    "cfg": (0.66, 0.70, 0.71),
    "cfg+interval": (0.61, 0.64, 0.62),
    "autoguidance": (0.50, 0.53, 0.53),
}
_CHOSEN = {"unguided": None, "cfg": 1.5, "cfg+interval": 2.0, "autoguidance": 1.25}


def results(*, num_classes: int = 10) -> dict[str, Any]:
    """The content of a `results.json` with every part present."""
    main, guide, unconditional = "main@0.070", "main@0.100:20Ki", "unconditional@0.070"
    guides = {"unguided": None, "cfg": unconditional, "cfg+interval": unconditional, "autoguidance": guide}
    intervals = {method: [0.2, 2.0] if method == "cfg+interval" else None for method in METHODS}
    rows = [
        {
            "method": method,
            "main": main,
            "guide": guides[method],
            "weight": _CHOSEN[method],
            "interval": intervals[method],
            "fd": float(np.mean(values)),
            "fd_std": float(np.std(values, ddof=1)),
            "fd_repeats": list(values),
            "evaluations_main": 23,
            "evaluations_guide": {"unguided": 0, "cfg+interval": 9}.get(method, 23),
            "seconds_per_image": 0.011 if method == "unguided" else 0.02,
        }
        for method, values in _REPEATS.items()
    ]
    search = [
        {
            "method": "unguided",
            "main": main,
            "guide": None,
            "weight": None,
            "interval": None,
            "fd": 0.86,
            "num_images": 500,
        }
    ]
    for method in METHODS[1:]:
        best = float(_CHOSEN[method] or 1)
        for weight in (1.05, 1.1, 1.25, 1.5, 2.0, 3.0):
            for excess, name in ((0.0, guides[method]), (0.1, "guide@0.070")):
                bowl = 0.25 * np.log((weight - 1) / (best - 1)) ** 2
                point = {"method": method, "main": main, "guide": name, "weight": weight, "interval": intervals[method]}
                search.append(
                    {**point, "fd": float(np.mean(_REPEATS[method]) + 0.02 + excess + bowl), "num_images": 500}
                )
    return {
        "protocol": {
            "features": "classifier",
            "features_sha256": "ab" * 32,
            "num_images": 1797,
            "seeds": [1000, 6391],
            "class_sampling": "balanced",
            "reference": "digits",
            "reference_sha256": "cd" * 32,
            "num_real": 1797,
            "solver": {"name": "heun", "num_steps": 12},
            "repeats": 3,
        },
        "rows": rows,
        "search": search,
        "dataset": {
            "name": "digits",
            "num_images": 1797,
            "resolution": 8,
            "channels": 1,
            "class_names": [str(digit) for digit in range(num_classes)],
            "fingerprint": "ef" * 32,
        },
        "training": {
            "main": {"preset": "tiny-8", "num_parameters": 181_000, "num_images": 150_000, "seconds": 135.0},
            "guide": {"preset": "nano-8", "num_parameters": 46_000, "num_images": 9_375, "seconds": 4.1},
            "unconditional": {"preset": "nano-8", "num_parameters": 46_000, "num_images": 75_000, "seconds": 33.0},
        },
        "baseline": {"real_half": 0.19},
        "seconds": {"train": 172.1, "search": 120.0, "compare": 60.5},
    }


def image_set(
    rng: np.random.Generator, *, seeds: np.ndarray, class_idx: np.ndarray, shape: tuple[int, ...]
) -> dict[str, Any]:
    """Images whose brightness tells their class apart, in the arrays of `generate --format npz`."""
    base = (class_idx * 20).reshape(-1, 1, 1, 1)
    images = np.clip(base + rng.integers(0, 60, (len(seeds), *shape)), 0, 255).astype(np.uint8)
    return {"seeds": seeds, "class_idx": class_idx, "images": images}


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """make_run(name, change=…, images=…, shape=…): `change` edits the content of results.json in place."""

    def make(
        name: str = "digits",
        *,
        change: Callable[[dict[str, Any]], Any] = lambda content: None,
        images: bool = True,
        logs: bool = True,
        shape: tuple[int, ...] = (1, 8, 8),
    ) -> Path:
        folder = tmp_path / name
        (folder / "images").mkdir(parents=True)
        content = results()
        change(content)
        (folder / "results.json").write_text(json.dumps(content))
        (folder / "pair.json").write_text("{}")
        if images:
            rng = np.random.default_rng(0)
            class_idx = np.repeat(np.arange(10), 4)
            for method in (*METHODS, "real"):
                arrays = image_set(rng, seeds=np.arange(40), class_idx=class_idx, shape=shape)
                np.savez(folder / "images" / f"{method}.npz", **arrays)
        if logs:
            for network, floor in (("main", 0.1), ("guide", 0.3)):
                (folder / network).mkdir()
                records = [{"num_images": k * 512, "loss": floor + 2 / (k + 1)} for k in range(1, 60)]
                lines = "".join(json.dumps(record) + "\n" for record in records)
                (folder / network / "log.jsonl").write_text(lines)
        return folder

    return make


@pytest.fixture
def page_of(tmp_path: Path) -> Callable[..., Page]:
    def make(*folders: Path) -> Page:
        return Page(write_report(list(folders), tmp_path / "report.html").read_text(encoding="utf-8"))

    return make
