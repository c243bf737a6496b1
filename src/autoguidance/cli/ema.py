"""`autoguidance ema`: averages of any width from a run's snapshots, after training."""

from pathlib import Path
from typing import Annotated

import typer

from autoguidance.cli.common import app, console, progress_bar
from autoguidance.errors import UserError


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


@app.command(epilog="Example: autoguidance ema runs/main --std 0.05,0.10,...,0.25 --out out/averages")
def ema(
    run: Annotated[Path, typer.Argument(help="Run folder, or a folder of snapshots NNNNNNNNNNN-STD.safetensors.")],
    std: Annotated[str, typer.Option(help="Relative widths, e.g. 0.05,0.10,...,0.25.")],
    at: Annotated[str | None, typer.Option(help="Images seen (a stored time), e.g. 8Mi.  [default: the last]")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the model files.  [default: RUN/posthoc]")] = None,
) -> None:
    """Post-hoc EMA: reconstruct averages of any width from the stored ones."""
    from rich.table import Table

    from autoguidance.ema import reconstruction_error, snapshot_name
    from autoguidance.models import save_model
    from autoguidance.storage import make_folder
    from autoguidance.train.config import parse_count
    from autoguidance.zoo import average, list_snapshots

    widths = parse_stds(std)
    snapshots = list_snapshots(run)
    end = parse_count(at) if at is not None else snapshots[-1].num_images
    folder = make_folder(out or run / "posthoc")
    with progress_bar("ema") as progress:
        averages = average(run, widths, end, progress=progress)
    stored = [(s.num_images, s.ema_std) for s in snapshots if s.num_images <= end]
    table = Table("width", "file", "error of the profile")
    for width, (info, weights) in averages.items():
        path = folder / snapshot_name(end, width)
        save_model(path, weights, info)
        table.add_row(f"{width:.3f}", str(path), f"{reconstruction_error(stored, (end, width)):.2%}")
    console.print(table)
