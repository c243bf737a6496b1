"""How fast and how exact is the Fréchet distance of two sets of n x d features, against scipy.linalg.sqrtm?

Features are made to look like those of a network: ReLU of correlated normals whose spectrum falls off as a power, with
dead units in one variant. Both ways are timed in one process on the same features, threads as the environment says:

    ours      Accumulator in batches of 64 (as `evaluate` streams them), then `frechet_distance`
    textbook  numpy.cov in float64, then trace of scipy.linalg.sqrtm(S_a S_b)

Features lie where a network leaves them: with `--device cuda` ours starts from the GPU. The textbook starts from
float64 features in main memory; how they get there is not counted. One block is pooled before the clock starts, because
the first product on a GPU loads its library. Processor seconds leave out what a GPU computes: read the wall clock's
ratios there.

The last line of the output is one JSON object. Usage: python benchmarks/frechet.py [--num 50000] [--features 2048]
[--device cuda]
"""

import argparse
import json
import os
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy
import scipy.linalg
import torch

from autoguidance.evaluate.frechet import frechet_terms
from autoguidance.evaluate.statistics import BLOCK, Accumulator, Statistics


def make_features(num: int, dimensions: int, *, shift: float, seed: int, dead: int = 0) -> np.ndarray:
    """float32 [num, dimensions]: non-negative, correlated, with a spectrum that falls off as 1 / rank."""
    generator = torch.Generator().manual_seed(7)
    mixing = torch.linalg.qr(torch.randn(dimensions, dimensions, generator=generator))[0]
    scales = torch.arange(1, dimensions + 1) ** -0.5
    generator.manual_seed(seed)
    latent = torch.randn(num, dimensions, generator=generator) * scales
    features = torch.relu(latent @ mixing.T * dimensions**0.5 * 0.1 + 0.2 + shift * mixing[0])
    features[:, :dead] = 0
    return features.numpy()


def streamed(features: np.ndarray | torch.Tensor) -> Statistics:
    """Statistics as `evaluate` makes them."""
    accumulator = Accumulator()
    for start in range(0, len(features), 64):
        accumulator.update(features[start : start + 64])
    return accumulator.statistics()


def textbook(mean_a: np.ndarray, cov_a: np.ndarray, mean_b: np.ndarray, cov_b: np.ndarray) -> float:
    """The distance as most programs compute it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        root = scipy.linalg.sqrtm(cov_a @ cov_b)
    return float(np.square(mean_a - mean_b).sum() + np.trace(cov_a + cov_b) - 2 * np.trace(root).real)


def timed(function: Callable[..., Any], *arguments: Any) -> tuple[Any, dict[str, float]]:
    """Result and seconds: on the wall clock, and of all cores (which other programs on the machine disturb less)."""
    start, processor = time.perf_counter(), time.process_time()
    result = function(*arguments)
    return result, {"wall": time.perf_counter() - start, "cpu": time.process_time() - processor}


def measure(num: int, dimensions: int, dead: int, device: str) -> dict[str, Any]:
    """All figures of one variant."""
    real = make_features(num, dimensions, shift=0.0, seed=0, dead=dead)
    made = make_features(num, dimensions, shift=0.5, seed=1, dead=dead)
    here = [torch.from_numpy(features).to(device) for features in (made, real)]
    streamed(here[0][: 2 * BLOCK])
    (a, b), ours_statistics = timed(lambda: [streamed(features) for features in here])
    terms, ours_distance = timed(frechet_terms, a, b)
    wide = [features.astype(np.float64) for features in (made, real)]
    moments, numpy_statistics = timed(lambda: [(f.mean(axis=0), np.cov(f, rowvar=False)) for f in wide])
    expected, sqrtm_distance = timed(textbook, *moments[0], *moments[1])
    ratios = {
        clock: {
            "distance": sqrtm_distance[clock] / ours_distance[clock],
            "statistics_and_distance": (numpy_statistics[clock] + sqrtm_distance[clock])
            / (ours_statistics[clock] + ours_distance[clock]),
            "sqrtm_alone_against_all_of_ours": sqrtm_distance[clock] / (ours_statistics[clock] + ours_distance[clock]),
        }
        for clock in ("wall", "cpu")
    }
    return {
        "dead_features": dead,
        "distance": terms.distance,
        "difference": abs(terms.distance - expected),
        "seconds": {
            "ours": {"statistics": ours_statistics, "distance": ours_distance},
            "sqrtm": {"statistics": numpy_statistics, "distance": sqrtm_distance},
        },
        "ratios": ratios,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Fréchet distance against scipy.linalg.sqrtm.")
    parser.add_argument("--num", type=int, default=50_000)
    parser.add_argument("--features", type=int, default=2048)
    parser.add_argument("--dead", type=int, default=0, help="constant features, which make both covariances singular")
    parser.add_argument("--device", default="cpu", help="where ours finds the features: cpu or cuda")
    options = parser.parse_args()
    threads = int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads()))
    device = torch.device(options.device)
    setting = {
        "num_images": options.num,
        "num_features": options.features,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": threads,
        "versions": {"torch": torch.__version__, "numpy": np.__version__, "scipy": scipy.__version__},
    }
    figures = measure(options.num, options.features, options.dead, options.device)
    result = {"benchmark": "frechet", **setting, **figures}
    print(json.dumps(result))  # noqa: T201 (the benchmark's result)


if __name__ == "__main__":
    main()
