"""Options that several verbs share: which models, how guided, how sampled; and how their text is read.

They are declared once, as the fields of `SamplerOptions`; `with_sampler_options` gives a verb that takes such an object
one command-line option per field.
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autoguidance.errors import UserError

if TYPE_CHECKING:
    import torch

    from autoguidance.zoo import Pair

PairOption = Annotated[
    str | None,
    typer.Option(
        "--pair", help="pair.json (or its folder), as made by run; a shipped pair's name; or preset:NAME (published)."
    ),
]
MainOption = Annotated[
    str | None,
    typer.Option("--main", help="Main model: FILE.safetensors, RUN, RUN@0.070, RUN@0.070:8Mi or a published name."),
]
GuideOption = Annotated[str | None, typer.Option("--guide", help="Its bad version (autoguidance).")]
WeightOption = Annotated[float | None, typer.Option("--weight", help="Autoguidance weight w; 1 is off.")]
UnconditionalOption = Annotated[
    str | None, typer.Option("--unconditional", help="Unconditional model (classifier-free guidance).")
]
CfgWeightOption = Annotated[float | None, typer.Option("--cfg-weight", help="Classifier-free weight; 1 is off.")]
IntervalOption = Annotated[str | None, typer.Option("--interval", help="LO,HI: guide only while LO < sigma <= HI.")]
SolverOption = Annotated[str | None, typer.Option("--solver", help="heun or euler.")]
StepsOption = Annotated[int | None, typer.Option("--steps", help="Solver steps.  [default: the pair's, or 32]")]
SigmaMinOption = Annotated[float | None, typer.Option("--sigma-min", help="Lowest noise level.  [default: 0.002]")]
SigmaMaxOption = Annotated[float | None, typer.Option("--sigma-max", help="Highest noise level.  [default: 80]")]
RhoOption = Annotated[float | None, typer.Option("--rho", help="Exponent of the schedule.  [default: 7]")]
ChurnOption = Annotated[str | None, typer.Option("--churn", help="S,MIN,MAX,NOISE: stochastic sampling.")]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
DtypeOption = Annotated[str | None, typer.Option("--dtype", help="float32, bfloat16 or float16 (GPU only).")]


@dataclass(frozen=True, kw_only=True)
class SamplerOptions:
    """Which models, how guided, how sampled, as given on the command line."""

    pair: PairOption = None
    main: MainOption = None
    guide: GuideOption = None
    weight: WeightOption = None
    unconditional: UnconditionalOption = None
    cfg_weight: CfgWeightOption = None
    interval: IntervalOption = None
    solver: SolverOption = None
    steps: StepsOption = None
    sigma_min: SigmaMinOption = None
    sigma_max: SigmaMaxOption = None
    rho: RhoOption = None
    churn: ChurnOption = None

    def build(self) -> "Pair":
        """The Pair that they describe. Raises UserError as `build_pair` does."""
        return build_pair(**{field.name: getattr(self, field.name) for field in fields(self)})


def with_sampler_options(verb: Callable[..., None]) -> Callable[..., None]:
    """A verb whose parameter `sampler: SamplerOptions` is filled from one option per field of `SamplerOptions`.

    Typer reads a function's signature, so the one that it sees has these options in the parameter's place.
    """
    own = inspect.signature(verb, eval_str=True)
    shared = inspect.signature(SamplerOptions, eval_str=True).parameters.values()
    parameters: list[inspect.Parameter] = []
    for parameter in own.parameters.values():
        given = shared if parameter.name == "sampler" else [parameter]
        parameters += [item.replace(kind=inspect.Parameter.KEYWORD_ONLY) for item in given]

    @functools.wraps(verb)
    def call(**values: Any) -> None:
        options = {parameter.name: values.pop(parameter.name) for parameter in shared}
        verb(sampler=SamplerOptions(**options), **values)

    call.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return call


def parse_numbers(text: str, option: str, count: int) -> list[float]:
    """Exactly `count` comma-separated numbers. Raises UserError naming the option."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) != count or any(value != value for value in values):
        raise UserError(f"{option} {text!r}: give {count} numbers separated by commas")
    return values


def parse_dtype(text: str | None, device: "torch.device") -> "torch.dtype | None":
    """The dtype of a network's body. Raises UserError for an unknown name, or float16 on a CPU."""
    import torch

    if text is None:
        return None
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if text not in known:
        raise UserError(f"--dtype {text!r}: choose one of {', '.join(known)}")
    if text == "float16" and device.type == "cpu":
        raise UserError(
            "--dtype float16 needs a GPU (on a CPU it is far slower than float32); choose float32 or bfloat16"
        )
    return known[text]


def build_pair(
    pair: str | None,
    main: str | None,
    guide: str | None,
    weight: float | None,
    unconditional: str | None,
    cfg_weight: float | None,
    interval: str | None,
    solver: str | None,
    steps: int | None,
    sigma_min: float | None,
    sigma_max: float | None,
    rho: float | None,
    churn: str | None,
) -> "Pair":
    """A Pair from the options: those of --pair, or --main and the rest; options given beside --pair override its values."""
    from dataclasses import replace

    from autoguidance.sample import Heun, make_solver
    from autoguidance.zoo import Pair

    if (pair is None) == (main is None):
        raise UserError("give either --pair or --main")
    if pair is not None and (guide is not None or unconditional is not None):
        raise UserError("--pair names its models already; leave out --guide and --unconditional, or use --main")
    if pair is not None:
        spec = Pair.load(pair)
    else:
        if guide is not None and weight is None:
            raise UserError("--guide needs --weight (1.05 to 3 is usual)")
        if unconditional is not None and cfg_weight is None:
            raise UserError("--unconditional needs --cfg-weight (1.1 to 3 is usual)")
        spec = Pair(main=main or "", guide=guide, weight=1.0 if weight is None else weight, unconditional=unconditional)
    changes: dict[str, object] = {}
    if weight is not None:
        changes["weight"] = weight
    if cfg_weight is not None:
        changes["cfg_weight"] = cfg_weight
    if interval is not None:
        changes["interval"] = tuple(parse_numbers(interval, "--interval", 2))
    base = spec.solver or Heun()
    settings = dict(vars(base))
    given = {"num_steps": steps, "sigma_min": sigma_min, "sigma_max": sigma_max, "rho": rho}
    settings.update({k: v for k, v in given.items() if v is not None})
    if churn is not None:
        numbers = parse_numbers(churn, "--churn", 4)
        settings.update(zip(("churn", "churn_min", "churn_max", "churn_noise"), numbers, strict=True))
    changes["solver"] = make_solver(solver or base.name, **settings)
    return replace(spec, **changes)
