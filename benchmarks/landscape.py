"""A landscape of Fréchet distances over (w, EMA_main, EMA_guide), computed once and densely: what a search is judged by.

    python benchmarks/landscape.py --folder /tmp/landscape --out benchmarks/landscape-digits.json

Trains a `nano` network on the built-in digits (50,304 images, seed 0), takes its own snapshot at a sixth of the
training as the guide, and measures every point of the grid on the first 128, 384 and 1,152 of the same images (classes
in the data's proportions), so that a search over numbers of images can be replayed from the file. The grid's best
points are measured again on other images. Goes on where it was stopped; about an hour on two cores. The last line is
one JSON line.
"""

import argparse
import json
import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from autoguidance.data.open import open_data
from autoguidance.data.source import ImageSource
from autoguidance.diffusion.denoiser import Denoiser
from autoguidance.evaluate import Reference, Statistics, open_network, source_statistics
from autoguidance.evaluate.features import extract_features
from autoguidance.evaluate.frechet import frechet_distance
from autoguidance.evaluate.statistics import Accumulator
from autoguidance.guidance import Autoguidance
from autoguidance.sample import ClassSelection, Heun, Solver, image_encoder, proportional_classes, sample_batches
from autoguidance.storage import append_json_line, make_folder, read_json_lines, write_json
from autoguidance.train.loop import train
from autoguidance.train.presets import resolve
from autoguidance.tune import end_with_parent
from autoguidance.zoo import list_snapshots, load

WEIGHTS = (1.05, 1.1, 1.2, 1.3, 1.4, 1.5, 1.7, 2.0, 2.5, 3.0)
EMA_STDS = (0.03, 0.04, 0.05, 0.07, 0.1, 0.14, 0.2)
COUNTS = (128, 384, 1152)
SEARCH_SEEDS, OTHER_SEEDS = 5_000_000, 0
NUM_IMAGES, GUIDE_SHARE = 50_304, 1 / 6
SOLVER = Heun(num_steps=8)


def prepare(folder: Path) -> tuple[str, str]:
    """Train the network, its classifier and the reference statistics; names of main and guide without widths."""
    source = open_data("digits")
    config = resolve("nano", source, num_images=NUM_IMAGES, seed=0, ema_stds=(0.03, 0.1, 0.2))
    train(config, source, folder / "main")
    judge(folder, source)
    times = sorted({snapshot.num_images for snapshot in list_snapshots(folder / "main")})
    guide = min(times, key=lambda images: abs(images - GUIDE_SHARE * times[-1]))
    return f"{folder / 'main'}@{{:.3f}}:{times[-1]}", f"{folder / 'main'}@{{:.3f}}:{guide}"


def judge(folder: Path, source: ImageSource) -> None:
    """Train the classifier whose features are compared, and take the reference statistics."""
    classifier, reference = folder / "classifier.safetensors", folder / "reference.npz"
    network = open_network("classifier", channels=1, resolution=8, classifier=classifier, train_on=source, seed=0)
    if not reference.exists():
        source_statistics([network], source)[0].save(reference)


def distances(denoiser: Denoiser, folder: Path, counts: Sequence[int], first_seed: int, solver: Solver) -> list[float]:
    """Of the first `counts` images from first_seed on, one after the other."""
    network = open_network(f"classifier:{folder / 'classifier.safetensors'}", channels=1, resolution=8)
    reference = Reference(network=network, statistics=Statistics.load(folder / "reference.npz"))
    classes = tuple(proportional_classes(open_data("digits").class_idx))
    encoder, selection = image_encoder(denoiser), ClassSelection(classes, denoiser.num_classes)
    accumulator, row, start = Accumulator(), [], 0
    with torch.inference_mode():
        for count in counts:
            seeds = range(first_seed + start, first_seed + count)
            batches = sample_batches(denoiser, seeds, classes=selection, solver=solver, batch_size=64)
            for features in extract_features(network, (encoder.decode(batch.latents) for batch in batches)):
                accumulator.update(features)
            row.append(frechet_distance(accumulator.statistics(), reference.statistics))
            start = count
    return row


def measure(main: str, guide: str, weights: tuple[float, ...], first_seed: int, folder: Path) -> list[list[float]]:
    """Distances per weight and count, for one pair of models."""
    torch.set_num_threads(1)
    models = load(main), load(guide)
    guided = (Autoguidance(*models, weight=weight) for weight in weights)
    return [distances(denoiser, folder, COUNTS, first_seed, SOLVER) for denoiser in guided]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="work folder")
    parser.add_argument("--out", type=Path, required=True, help="the landscape, JSON")
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    begun, folder = time.perf_counter(), arguments.folder
    make_folder(folder)
    main_name, guide_name = prepare(folder)
    journal = folder / "grid.jsonl"
    done = {tuple(r["ema"]): r["fd"] for r in read_json_lines(journal)} if journal.exists() else {}
    todo = [(a, b) for a in EMA_STDS for b in EMA_STDS if (a, b) not in done]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.processes, mp_context=context, initializer=end_with_parent) as pool:
        futures = {
            pair: pool.submit(
                measure, main_name.format(pair[0]), guide_name.format(pair[1]), WEIGHTS, SEARCH_SEEDS, folder
            )
            for pair in todo
        }
        for pair, future in futures.items():
            done[pair] = future.result()
            append_json_line(journal, {"ema": pair, "fd": done[pair]})
            print(f"{len(done)}/{len(EMA_STDS) ** 2}  {pair}  best {min(r[-1] for r in done[pair]):.4f}", flush=True)  # noqa: T201
        # The best points again on other images: how much of the best is luck.
        flat = sorted((row[-1], a, b, w) for (a, b), rows in done.items() for w, row in zip(WEIGHTS, rows, strict=True))
        again = [
            pool.submit(measure, main_name.format(a), guide_name.format(b), (w,), OTHER_SEEDS, folder)
            for _, a, b, w in flat[:10]
        ]
        others = [
            {"weight": w, "ema_main": a, "ema_guide": b, "fd": fd, "fd_other_images": future.result()[0][-1]}
            for (fd, a, b, w), future in zip(flat[:10], again, strict=True)
        ]
    content = {
        "data": "digits",
        "main": f"nano, {NUM_IMAGES} images, seed 0",
        "guide": "its own snapshot at " + guide_name.rpartition(":")[2] + " images",
        "features": "classifier (seed 0)",
        "solver": SOLVER.describe(),
        "first_seed": SEARCH_SEEDS,
        "axes": {"weight": WEIGHTS, "ema_main": EMA_STDS, "ema_guide": EMA_STDS, "num_images": COUNTS},
        "fd": [
            [[[round(v, 6) for v in done[a, b][i]] for b in EMA_STDS] for a in EMA_STDS] for i in range(len(WEIGHTS))
        ],
        "best_again": others,
    }
    write_json(arguments.out, content)
    print(json.dumps({"points": len(flat), "best": flat[0], "seconds": time.perf_counter() - begun}))  # noqa: T201


if __name__ == "__main__":
    main()
