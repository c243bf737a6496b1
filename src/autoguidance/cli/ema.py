"""`autoguidance ema`: averages of any width from a run's snapshots, after training."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autoguidance.cli.common import ProgressCallback, app, console, errors, progress_bar
from autoguidance.errors import UserError

if TYPE_CHECKING:
    from autoguidance.zoo.posthoc import PosthocPlan


def parse_stds(text: str) -> list[float]:
    """Widths from "0.05,0.10,...,0.25": numbers; `...` goes on with the step of the two before it. Raises UserError otherwise."""
    from autoguidance.ema import MAX_EMA_STD

    parts = [part.strip() for part in text.split(",")]
    widths: list[float] = []
    try:
        for index, part in enumerate(parts):
            if part != "...":
                widths.append(round(float(part), 6))
                continue
            step, last = widths[-1] - widths[-2], float(parts[index + 1])
            count = round((last - widths[-1]) / step)
            if step <= 0 or count < 1 or abs(widths[-1] + count * step - last) > 1e-6:
                raise ValueError
            widths.extend(round(widths[-1] + step, 6) for _ in range(count - 1))
    except (ValueError, IndexError, ZeroDivisionError):
        raise UserError(f"--std {text!r}: write widths such as 0.05,0.10 or 0.05,0.10,...,0.25") from None
    if not all(0 < width <= MAX_EMA_STD for width in widths):
        raise UserError(f"--std {text!r}: widths must be in (0, {MAX_EMA_STD:.3f}]")
    if any(round(width, 3) != width for width in widths):
        raise UserError(f"--std {text!r}: give widths with at most three decimals, which the file names hold")
    return list(dict.fromkeys(widths))


@app.command(
    epilog="Example: autoguidance ema runs/main --std 0.05,0.10,...,0.25 --out out/averages. "
    "The same command continues where it was stopped."
)
def ema(
    run: Annotated[
        str,
        typer.Argument(
            help="Run folder; a folder of snapshots, ours (NNNNNNNNNNN-STD.safetensors) or published (PREFIX-KIMG7-STD3.pkl); "
            "or the http(s) address of such a folder."
        ),
    ],
    std: Annotated[str, typer.Option(help="Relative widths, e.g. 0.05,0.10,...,0.25.")],
    at: Annotated[str | None, typer.Option(help="Images seen (a stored time), e.g. 8Mi.  [default: the last]")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the model files.  [default: RUN/posthoc; needed for an address]")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be made, and how well; make nothing.")
    ] = False,
    keep: Annotated[
        Path | None, typer.Option(help="Folder in which fetched snapshots stay.  [default: each is removed after use]")
    ] = None,
    names: Annotated[
        Path | None,
        typer.Option("--list", help="Text file with the snapshots' names, for an address that shows no list."),
    ] = None,
    memory: Annotated[
        float | None,
        typer.Option(help="GB of memory to use; less means more passes.  [default: 80 % of what is free]"),
    ] = None,
) -> None:
    """Post-hoc EMA: reconstruct averages of any width from the stored ones."""
    from autoguidance.train.config import parse_count
    from autoguidance.zoo.download import is_url
    from autoguidance.zoo.posthoc import passes, plan_averages
    from autoguidance.zoo.posthoc_write import write_averages

    widths = parse_stds(std)
    if out is None and is_url(run) and not dry_run:
        raise UserError("--out is missing: name the folder for the models made from an address")
    if memory is not None and not 0 < memory < 1e6:
        raise UserError(f"--memory {memory}: give the gigabytes to use, such as 16")
    listed = None if names is None else _read_names(names)
    plan = plan_averages(run, widths, parse_count(at) if at is not None else None, names=listed)
    memory_bytes = None if memory is None else int(memory * 1e9)
    _show(plan)
    if dry_run:
        count = len(passes(plan, plan.stds, memory_bytes))
        needed = (-(-len(widths) // count) + 1) * plan.network_bytes
        console.print(
            f"would read {plan.size_bytes / 1e9:.3g} GB in {count} {'pass' if count == 1 else 'passes'}, with "
            f"{needed / 1e9:.3g} GB of memory"
        )
        return
    folder = out or Path(run) / "posthoc"
    with progress_bar("ema, MB") as progress:
        paths = write_averages(
            plan,
            folder,
            keep=keep,
            memory_bytes=memory_bytes,
            progress=_in_megabytes(progress, time.monotonic),
            notify=lambda line: errors.print(f"autoguidance: {line}", markup=False, soft_wrap=True),
        )
    console.print(
        f"{len(paths)} models in {folder} (figures in {folder / 'posthoc.json'})", markup=False, soft_wrap=True
    )


def _read_names(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--list {path} cannot be read as text ({error}); give a file with one name per line") from None
    if not lines:
        raise UserError(f"--list {path} is empty; give a file with one name per line")
    return [line.rpartition("/")[2] for line in lines]


def _show(plan: "PosthocPlan") -> None:
    """The table of expected errors, and a warning where a width cannot be had."""
    from rich.table import Table

    from autoguidance.ema import MAX_PROFILE_ERROR, snapshot_name

    table = Table("width", "file", "profile error", "width made", "rounding")
    for width, error, made, gain in zip(plan.stds, plan.errors, plan.made, plan.gains, strict=True):
        shown = f"{made:.4f}" if made == made else "none"
        table.add_row(
            f"{width:.3f}", snapshot_name(plan.num_images, width), f"{error:.2%}", shown, f"x{gain:.2g}",
            style="yellow" if error > MAX_PROFILE_ERROR else None,
        )  # fmt: skip
    console.print(
        f"{len(plan.snapshots)} snapshots, {plan.size_bytes / 1e6:.4g} MB, of {plan.origin}",
        markup=False,
        soft_wrap=True,
    )
    console.print(table)
    if plan.missing:
        errors.print(
            f"autoguidance: warning: {len(plan.missing)} snapshots of a published run are not there, first {plan.missing[0]}; the "
            "errors above count that in",
            markup=False,
            soft_wrap=True,
        )
    if plan.unrepresentable:
        listed = ", ".join(f"{width:.3f}" for width in plan.unrepresentable)
        errors.print(
            f"autoguidance: warning: the snapshots cannot represent width {listed} (profile error above {MAX_PROFILE_ERROR:.0%}); what is "
            "made has another width",
            markup=False,
            soft_wrap=True,
        )


def _in_megabytes(progress: ProgressCallback, clock: Callable[[], float]) -> ProgressCallback:
    """A progress callback in bytes that shows megabytes, and the time left at the speed of this call."""
    start, first = clock(), -1

    def callback(done: int, total: int, figures: dict[str, Any]) -> None:
        nonlocal start, first
        if first < 0:  # what an earlier call had done took none of this call's time
            start, first = clock(), done
        seconds = (clock() - start) * (total - done) / (done - first) if done > first else 0.0
        left = (
            {"left": f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02d}:{int(seconds) % 60:02d}"} if seconds else {}
        )
        progress(done // 1_000_000, total // 1_000_000, {**figures, **left})

    return callback
