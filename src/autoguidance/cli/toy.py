"""`autoguidance toy`: the 2D experiment of the paper, trained, measured and drawn."""

from pathlib import Path
from typing import Annotated, Any

import typer

from autoguidance.cli.common import app, console, progress_bar

_TITLES = {
    "truth": "true samples",
    "none": "no guidance",
    "cfg": "classifier-free",
    "truncation": "naive truncation",
    "autoguidance": "autoguidance",
}


def _table(panels: dict[str, dict[str, Any]]) -> Any:
    from rich.table import Table

    table = Table(title="2D toy, class A")
    # The mean is at the mercy of a few points far away, so the median stands beside it.
    table.add_column("samples", no_wrap=True)
    for heading in ("outside 99 %", "mean log p", "median", "covered", "lost limbs", "lost at depth 3"):
        table.add_column(heading, justify="right")
    for name, title in _TITLES.items():
        figures = panels[name]
        lost = figures["lost_mass"]
        table.add_row(
            title,
            f"{figures['outside_99']:.1%}",
            f"{figures['mean_log_density']:.3g}",
            f"{figures['median_log_density']:.2f}",
            f"{figures['coverage']:.1%}",
            f"{lost['sum']:.1%}",
            f"{lost['sum_by_depth']['3']:.1%}",
        )
    return table


@app.command("toy", epilog="Example: autoguidance toy --out runs/toy")
def toy(
    out: Annotated[Path, typer.Option(help="Folder for results.json and the figures.")] = Path("runs/toy"),
    seed: Annotated[int, typer.Option(min=0, help="Fixes everything random.")] = 0,
) -> None:
    """Train the 2D models of the paper, sample them five ways, measure, and draw Figures 1, 2 and 9 (about two minutes)."""
    from autoguidance.study.toy import ToyStudy, run_toy

    with progress_bar("toy") as progress:
        results = run_toy(out, ToyStudy(seed=seed), progress=progress)
    console.print(_table(results["panels"]))
    for name in ("results.json", *results["figures"]):
        console.print(str(out / name), markup=False, soft_wrap=True)
