"""The studies by name."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from autoguidance.data.open import open_data
from autoguidance.errors import UserError
from autoguidance.report.page import write_report
from autoguidance.storage import alone, make_folder, read_json, write_json
from autoguidance.study.degradations import degradations
from autoguidance.study.efficiency import efficiency
from autoguidance.study.experiment import Experiment, StudyConfig
from autoguidance.study.gap import gap
from autoguidance.study.methods import domain, methods
from autoguidance.study.mixing import mixing
from autoguidance.study.stages import Stage, Stages, silent


@dataclass(frozen=True, kw_only=True)
class Study:
    """One study.

    Attributes:
        title: what it answers, one line.
        conduct: does it on one data set.
        unconditional: the networks are given no classes.
        several: takes several data sets.
    """

    title: str
    conduct: Callable[[Experiment], dict[str, Any]]
    unconditional: bool = False
    several: bool = False


STUDIES = {
    "methods": Study(title="every method of guidance at its own best setting (the paper's Table 1)", conduct=methods),
    "unconditional": Study(title="the same without labels", conduct=methods, unconditional=True),
    "gap": Study(title="how bad should the bad version be? guide size times guide training (Figure 3)", conduct=gap),
    "efficiency": Study(title="quality against cost: steps, methods, sizes of the guide", conduct=efficiency),
    "degradations": Study(
        title="must the guide's errors match? dropout and input noise on one model", conduct=degradations
    ),
    "mixing": Study(title="CFG and autoguidance together: total strength and share (Eq. 6)", conduct=mixing),
    "domains": Study(title="unguided, CFG and autoguidance on each data set given", conduct=domain, several=True),
}


def find_study(name: str) -> Study:
    """The study of that name. Raises UserError where there is none."""
    if name not in STUDIES:
        raise UserError(f"there is no study {name!r}; choose one of {', '.join(STUDIES)} (autoguidance study --list)")
    return STUDIES[name]


def conduct(config: StudyConfig, stage: Stage = silent) -> dict[str, Any]:
    """Do a study on one data set, or what is left of it.

    Args:
        config: what to do and where.
        stage: given a stage's title, a context manager that yields a progress callback.

    Returns: the content of results.json.
    Raises: UserError where the data cannot be used, the folder holds something else or cannot be written.
    """
    study = find_study(config.name)
    make_folder(config.out)
    with alone(
        config.out / ".lock", f"another process is working in {config.out}; wait for it, or choose another --out"
    ):
        with stage("check images") as progress:
            source = open_data(config.data, resolution=config.resolution, progress=progress)
        experiment = Experiment(config, source, Stages(config.out, stage), unconditional=study.unconditional)
        if (config.out / "report.html").exists():  # written last: it is complete
            return read_json(config.out / "results.json")
        return study.conduct(experiment)


def conduct_several(config: StudyConfig, data: dict[str, str], stage: Stage = silent) -> dict[str, dict[str, Any]]:
    """A study on several data sets, each in a folder of its own, and one page about all.

    Args:
        config: of every one; its `data` is not used.
        data: folder name -> data set.
        stage: as for `conduct`.

    Returns: results by folder name.
    """
    make_folder(config.out)
    results = {}
    for name, where in data.items():
        trained = config.trained
        if trained is not None and (trained / name).is_dir():  # another study of several sets
            trained = trained / name
        results[name] = conduct(replace(config, data=where, out=config.out / name, trained=trained), stage)
    rows = [
        {"data": name, **{key: row[key] for key in ("method", "fd", "fd_std", "fd_repeats")}}
        for name, found in results.items()
        for row in found["rows"]
    ]
    write_json(config.out / "domains.json", {"study": config.name, "rows": rows})
    write_report([config.out], config.out / "report.html")
    return results
