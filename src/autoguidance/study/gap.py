"""How bad should the bad version be? Guides of several sizes and lengths, each at its own best weight and widths.

One row per guide: the main model's size, one and two sizes smaller, each at T/64, T/32, T/16, T/8 and T/4 of the training; a fair
comparison of guides gives each its own w and EMA widths. Beside each stand the diagnostics' verdict and its figures, so that the
rule can be checked: what they say before any image is sampled, and what came out.

Reference: Karras et al. 2024, arXiv 2406.02507, Figure 3.
"""

import math
from collections.abc import Mapping
from typing import Any

from autoguidance.errors import UserError
from autoguidance.storage import make_folder, read_json, write_json
from autoguidance.study.experiment import Experiment
from autoguidance.train.presets import smaller
from autoguidance.tune import GuideSource, SearchSpace
from autoguidance.tune.diagnose import diagnose
from autoguidance.zoo import list_snapshots

_SHARES = (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4)
_MAIN_STD, _GUIDE_STD = 0.05, 0.1


def gap(experiment: Experiment) -> dict[str, Any]:
    """Train, compare, write; returns the content of results.json, with `guides`: one record per guide."""
    sizes = _sizes(experiment.preset)
    runs = {"main": experiment.training(experiment.preset, 1, 0)}
    runs |= {f"guide-{size}": experiment.training(size, max(_SHARES), 4 + k) for k, size in enumerate(sizes)}
    experiment.train(runs)
    main = experiment.guide("main")
    guides = {
        f"{size} T/{round(1 / share)}": _at(experiment, f"guide-{size}", share) for size in sizes for share in _SHARES
    }
    spaces = [SearchSpace("unguided", main, experiment.solver)]
    spaces += [SearchSpace("autoguidance", main, experiment.solver, (g,), label=name) for name, g in guides.items()]
    found = experiment.compare(spaces)
    records = [
        guide_record(name, guide.num_images / experiment.num_images, _diagnosis(experiment, main, guide))
        for name, guide in guides.items()
    ]
    return experiment.finish(found, guides=records)


def guide_record(name: str, share: float, diagnosis: Mapping[str, Any]) -> dict[str, Any]:
    """One guide in `guides` of results.json.

    Args:
        name: its size and planned share of the training, such as "tiny T/16".
        share: the share that the stored snapshot really had, in (0, 1].
        diagnosis: as `Diagnosis.to_dict` gives it; its `size` (how far apart the two models are) becomes `difference`
            here, where size is the network's.
    """
    figures = {key: diagnosis[key] for key in ("verdict", "reason", "correlation", "correlation_se", "start_weight")}
    return {"guide": name, "size": name.split()[0], "share": share, "difference": diagnosis["size"], **figures}


def _sizes(preset: str) -> list[str]:
    """The main model's size and up to two smaller ones."""
    sizes = [preset]
    while len(sizes) < 3:
        try:
            sizes.append(smaller(sizes[-1]))
        except UserError:
            break
    return sizes


def _at(experiment: Experiment, name: str, share: float) -> GuideSource:
    times = sorted({snapshot.num_images for snapshot in list_snapshots(experiment.out / name)})
    wanted = share * experiment.num_images
    return experiment.guide(name, min(times, key=lambda time: abs(math.log(time / wanted))))


def _diagnosis(experiment: Experiment, main: GuideSource, guide: GuideSource) -> dict[str, Any]:
    """What `autoguidance diagnose` says of the guide."""
    path = experiment.out / "diagnoses" / f"{guide.label.replace(':', '-')}.json"
    if not path.exists():
        names = main.name(_MAIN_STD), guide.name(_GUIDE_STD)
        found = diagnose(*names, experiment.source, device=experiment.config.device)
        make_folder(path.parent)
        write_json(path, found.to_dict())
    return read_json(path)
