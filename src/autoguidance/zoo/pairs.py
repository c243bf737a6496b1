"""A guided sampler as data: which models, how strongly, where, with which solver; and the measurement that chose it
(`pair.json`)."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from autoguidance.diffusion.denoiser import Denoiser
from autoguidance.errors import UserError
from autoguidance.guidance import (
    Autoguidance,
    ClassifierFree,
    Degradation,
    Interval,
    MultiGuidance,
    NaiveTruncation,
    degrade,
)
from autoguidance.guidance.guided import check_interval, check_weight
from autoguidance.sample import Heun, Solver, solver_from_description
from autoguidance.storage import read_json, write_json
from autoguidance.zoo.download import ProgressCallback
from autoguidance.zoo.names import ModelName, is_remote, load, parse_model_name
from autoguidance.zoo.published import PRESET_PREFIX, PublishedPair, find_preset, is_published_name
from autoguidance.zoo.shipped_pairs import PAIR_FILE, ROLES, SHIPPED_PREFIX, shipped_folder, shipped_names

FORMAT_VERSION = 1
Loader = Callable[[str], Denoiser]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Everything needed to sample.

    Attributes:
        main: name of the main model.
        guide, weight: name and weight of its bad version (autoguidance); no guide: off.
        unconditional, cfg_weight: name and weight of the unconditional model (classifier-free guidance). With cfg_weight other than 1 and
            no name, the main model with the null label.
        interval: guidance acts while sigma_lo < sigma <= sigma_hi; None: always.
        truncation: factor on the main model's score (naive truncation, the negative control); 1: off. Not together with guidance.
        main_degraded, guide_degraded: for experiments: what is done to the main model and to the guide. Such a pair is not saved.
        solver: solver with its settings.
        measurement: the result that chose this pair, with its protocol; {} if none.
    """

    main: str
    guide: str | None = None
    weight: float = 1.0
    unconditional: str | None = None
    cfg_weight: float = 1.0
    interval: Interval | None = None
    truncation: float = 1.0
    main_degraded: Degradation | None = None
    guide_degraded: Degradation | None = None
    solver: Solver | None = None
    measurement: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_weight(self.weight)
        check_weight(self.cfg_weight)
        check_interval(self.interval)
        if self.guide is None and self.weight != 1:
            raise UserError(f"weight {self.weight} without a guide; name the guide, or leave out the weight")
        if not (math.isfinite(self.truncation) and self.truncation > 0):
            raise UserError(f"truncation {self.truncation} is out of range; choose a positive number (1 is off)")
        if self.truncation != 1 and (self.weight != 1 or self.cfg_weight != 1):
            raise UserError(f"truncation {self.truncation} does not go together with guidance; leave out one of them")

    @property
    def method(self) -> str:
        """ "unguided" | "cfg" | "autoguidance" | "mixed" | "truncation", with "+interval" where guidance is limited."""
        guided, free = self.guide is not None and self.weight != 1, self.cfg_weight != 1
        name = {(False, False): "unguided", (False, True): "cfg", (True, False): "autoguidance", (True, True): "mixed"}[
            guided, free
        ]
        if self.truncation != 1:
            name = "truncation"
        return name + ("+interval" if self.interval is not None and name != "unguided" else "")

    def denoiser(
        self,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        loader: Loader | None = None,
        progress: ProgressCallback | None = None,
    ) -> Denoiser:
        """The pair as one Denoiser; a model that cannot matter (weight 1) is not loaded.

        Args:
            device, dtype: as for `load`.
            loader: loads a model by name; None is `load`. A search passes one that caches.
            progress: of downloads, called with (bytes done, bytes in all, {}).
        """
        get = loader or (lambda name: load(name, device=device, dtype=dtype, progress=progress))
        main = degrade(get(self.main), self.main_degraded)
        guided, free = self.guide is not None and self.weight != 1, self.cfg_weight != 1
        if guided and free:
            if self.unconditional is None:
                raise UserError("mixing both guides needs an unconditional model; name one")
            assert self.guide is not None
            guides = [
                (degrade(get(self.guide), self.guide_degraded), self.weight),
                (get(self.unconditional), self.cfg_weight),
            ]
            return MultiGuidance(main, guides, interval=self.interval)
        if free:
            unconditional = None if self.unconditional is None else get(self.unconditional)
            return ClassifierFree(main, unconditional, weight=self.cfg_weight, interval=self.interval)
        if guided:
            assert self.guide is not None
            guide = degrade(get(self.guide), self.guide_degraded)
            return Autoguidance(main, guide, weight=self.weight, interval=self.interval)
        if self.truncation != 1:
            return NaiveTruncation(main, self.truncation, interval=self.interval)
        return main

    def save(self, path: Path | str) -> None:
        """Write pair.json atomically. Names of models below the file's folder are written relative to it, so the folder can move.

        Raises: UserError for a pair that is degraded on purpose, or where the file cannot be written.
        """
        if self.main_degraded or self.guide_degraded:
            raise UserError("a pair whose models are degraded on purpose is an experiment; it is not saved")
        path = Path(path)
        solver = self.solver.describe() if self.solver is not None else None
        content = {
            "format_version": FORMAT_VERSION,
            "method": self.method,
            "main": _relative(self.main, path.parent),
            "guide": _relative(self.guide, path.parent),
            "weight": self.weight,
            "unconditional": _relative(self.unconditional, path.parent),
            "cfg_weight": self.cfg_weight,
            "interval": None if self.interval is None else [str(v) if v == math.inf else v for v in self.interval],
            "solver": solver,
            "measurement": dict(self.measurement),
        }
        if self.truncation != 1:
            content["truncation"] = self.truncation
        write_json(path, content)

    @classmethod
    def _of_preset(cls, preset: PublishedPair) -> "Pair":
        return cls(
            main=preset.main,
            guide=preset.guide,
            weight=preset.weight,
            unconditional=preset.unconditional,
            cfg_weight=preset.cfg_weight,
            solver=Heun(),  # the published figures were measured with 32 Heun steps
            measurement={"published": {preset.metric: preset.figure}},
        )

    @classmethod
    def _of_shipped(cls, name: str) -> "Pair":
        """Its models keep names that mean the same in every installation."""
        folder = shipped_folder(name)
        pair = cls.load(folder.absolute() / PAIR_FILE)
        files = {str(folder.absolute() / f"{role}.safetensors"): role for role in ROLES}
        if pair.main not in files or pair.guide not in files:
            raise UserError(f"{folder / PAIR_FILE} names models that lie elsewhere; install autoguidance again")
        prefix = f"{SHIPPED_PREFIX}{folder.name}/"
        return replace(pair, main=prefix + files[pair.main], guide=prefix + files[pair.guide])

    @classmethod
    def load(cls, path: Path | str) -> "Pair":
        """Read pair.json (or its folder), a shipped pair by its name, or a published `preset:NAME`.

        A bare name is a shipped pair's unless a file or folder is called so; `shipped:NAME` always is.

        Raises: UserError where it is missing, damaged, or names what cannot be.
        """
        if str(path).startswith(PRESET_PREFIX):
            return cls._of_preset(find_preset(str(path)))
        bare = str(path) not in ("", ".", "..") and Path(path).name == str(path) and not str(path).endswith(".json")
        if str(path).startswith(SHIPPED_PREFIX) or (bare and not Path(path).exists()):
            return cls._of_shipped(str(path))
        path = Path(path)
        if path.is_dir():
            if str(path) in shipped_names() and not (path / PAIR_FILE).exists():
                raise UserError(
                    f"{path / PAIR_FILE} does not exist; for the pair shipped as {path} write {SHIPPED_PREFIX}{path}"
                )
            path = path / PAIR_FILE
        content = read_json(path)
        try:
            if content["format_version"] != FORMAT_VERSION:
                raise UserError(
                    f"{path} has format version {content['format_version']}, this program reads {FORMAT_VERSION}"
                )
            if not isinstance(content["main"], str) or not content["main"]:
                raise UserError("it names no main model; make one with autoguidance run")
            interval = content["interval"]
            return cls(
                main=_absolute(content["main"], path.parent) or "",
                guide=_absolute(content["guide"], path.parent),
                weight=float(content["weight"]),
                unconditional=_absolute(content["unconditional"], path.parent),
                cfg_weight=float(content["cfg_weight"]),
                interval=None if interval is None else (float(interval[0]), float(interval[1])),
                solver=None if content["solver"] is None else solver_from_description(content["solver"]),
                measurement=content.get("measurement", {}),
                truncation=float(content.get("truncation", 1.0)),
            )
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise UserError(
                f"{path} is not a pair file ({type(error).__name__}: {error}); make one with autoguidance run"
            ) from None


def _relative(name: str | None, folder: Path) -> str | None:
    if name is None or is_remote(name) or name.startswith(SHIPPED_PREFIX):
        return name
    parsed = parse_model_name(name)
    model, base = parsed.path.resolve(), folder.resolve()
    return str(replace(parsed, path=model.relative_to(base) if model.is_relative_to(base) else model))


def _absolute(name: str | None, folder: Path) -> str | None:
    if name is None or is_published_name(name) or name.startswith(SHIPPED_PREFIX):
        return name
    # The name's pattern is applied to the path beside the file, which exists; `ModelName` splits off width and time.
    parsed: ModelName = parse_model_name(name if Path(name).is_absolute() else str(folder / name))
    return str(parsed)
