"""A landscape with several guides: Fréchet distances over (guide, w, EMA_main, EMA_guide) and without guidance, on digits.

    python benchmarks/landscape_guides.py --folder /tmp/landscape-guides --out benchmarks/landscape-guides.json

Trains a `tiny` network on the built-in digits (50,304 images, seed 0); measures every combination of three of its early
snapshots as guides with a few weights and widths on the first 256 and 768 of the same images, and the main model alone.
search_guides.py replays searches on it: between the measured weights and widths the
logarithm of the distance is interpolated, so that the grid is as fine as the one that users search. Goes on where it
was stopped; some twenty minutes on one core. The last line is one JSON line.
"""

import argparse
import json
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from landscape import SEARCH_SEEDS, distances, judge

from autoguidance.data.open import open_data
from autoguidance.guidance import Autoguidance
from autoguidance.sample import Heun
from autoguidance.storage import append_json_line, make_folder, read_json_lines, write_json
from autoguidance.train.loop import train
from autoguidance.train.presets import resolve
from autoguidance.tune import end_with_parent
from autoguidance.zoo import list_snapshots, load

WEIGHTS = (1.15, 1.4, 1.75, 2.3)
EMA_STDS = (0.03, 0.08, 0.2)
COUNTS = (256, 768)
NUM_IMAGES, GUIDE_SHARES = 50_304, (1 / 16, 1 / 8, 1 / 4)
SOLVER = Heun(num_steps=6)


def prepare(folder: Path) -> tuple[str, list[str]]:
    """Train the network, the classifier and the reference; names of the main model and of the guides, without widths."""
    source, run = open_data("digits"), folder / "main"
    train(resolve("tiny", source, num_images=NUM_IMAGES, seed=0, ema_stds=(0.03, 0.1, 0.2)), source, run)
    times = sorted({snapshot.num_images for snapshot in list_snapshots(run)})
    near = [min(times, key=lambda images, share=share: abs(images - share * NUM_IMAGES)) for share in GUIDE_SHARES]
    judge(folder, source)
    return f"{run}@{{:.3f}}", [f"{run}@{{:.3f}}:{time}" for time in near]


def measure(main: str, guide: str | None, folder: Path) -> list[list[float]]:
    """Distances per weight and count for one pair; of the main model alone (one row) without a guide."""
    torch.set_num_threads(1)
    model = load(main)
    guided = [model] if guide is None else [Autoguidance(model, load(guide), weight=weight) for weight in WEIGHTS]
    return [distances(denoiser, folder, COUNTS, SEARCH_SEEDS, SOLVER) for denoiser in guided]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="work folder")
    parser.add_argument("--out", type=Path, required=True, help="the landscape, JSON")
    parser.add_argument("--processes", type=int, default=1)
    arguments = parser.parse_args()
    begun, folder = time.perf_counter(), arguments.folder
    make_folder(folder)
    model, guides = prepare(folder)
    journal = folder / "grid.jsonl"
    done = {tuple(r["place"]): r["fd"] for r in read_json_lines(journal)} if journal.exists() else {}
    places = [(a, None, None) for a in EMA_STDS]
    places += [(a, b, g) for g in range(len(guides)) for a in EMA_STDS for b in EMA_STDS]
    context = get_context("spawn")
    with ProcessPoolExecutor(arguments.processes, mp_context=context, initializer=end_with_parent) as pool:
        futures = {
            (a, b, g): pool.submit(measure, model.format(a), None if g is None else guides[g].format(b), folder)
            for a, b, g in places
            if (a, b, g) not in done
        }
        for place, future in futures.items():
            done[place] = future.result()
            append_json_line(journal, {"place": place, "fd": done[place]})
            print(f"{len(done)}/{len(places)}  {place}  best {min(r[-1] for r in done[place]):.4f}", flush=True)  # noqa: T201
    content = {
        "data": "digits",
        "main": f"tiny, {NUM_IMAGES} images, seed 0",
        "features": "classifier (seed 0)",
        "solver": SOLVER.describe(),
        "first_seed": SEARCH_SEEDS,
        "axes": {
            "guide": [f"{Path(g.partition('@')[0]).name}:{g.rpartition(':')[2]}" for g in guides],
            "weight": WEIGHTS,
            "ema_main": EMA_STDS,
            "ema_guide": EMA_STDS,
            "num_images": COUNTS,
        },
        "unguided": [[round(v, 6) for v in done[a, None, None][0]] for a in EMA_STDS],
        "fd": [
            [
                [[[round(v, 6) for v in done[a, b, g][i]] for b in EMA_STDS] for a in EMA_STDS]
                for i in range(len(WEIGHTS))
            ]
            for g in range(len(guides))
        ],
    }
    write_json(arguments.out, content)
    best = min((v[-1], g, i) for (a, b, g), rows in done.items() if g is not None for i, v in enumerate(rows))
    print(json.dumps({"points": len(places), "best": best, "seconds": time.perf_counter() - begun}))  # noqa: T201


if __name__ == "__main__":
    main()
