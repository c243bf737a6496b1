"""`autoguidance models`: the published settings that can be used by name."""

import json
from typing import Annotated

import typer

from autoguidance.cli.common import app, console


@app.command("models", epilog="Example: autoguidance models --json")
def models(
    as_json: Annotated[bool, typer.Option("--json", help="Print the list as JSON.")] = False,
) -> None:
    """List the published pairs and single models: networks, w, the published figure, size, and what is in the cache."""
    from autoguidance.zoo import LICENCE_NOTICE, PUBLISHED_PAIRS, cache_folder, is_cached
    from autoguidance.zoo.published import num_parameters

    rows = [
        {
            "name": f"preset:{pair.name}",
            "main": pair.main,
            "guide": pair.guide or pair.unconditional,
            "weight": pair.weight if pair.guide else pair.cfg_weight,
            "metric": pair.metric,
            "figure": pair.figure,
            "parameters": sum(map(num_parameters, pair.networks)),
            "cached": all(map(is_cached, pair.networks)),
        }
        for pair in PUBLISHED_PAIRS.values()
    ]
    if as_json:
        typer.echo(json.dumps({"licence": LICENCE_NOTICE, "cache": str(cache_folder()), "models": rows}, indent=1))
        return
    for row in rows:
        guided = f"w {row['weight']:g}" if row["guide"] else ""
        # Stored in float16: two bytes a parameter.
        size = f"{2 * row['parameters'] / 1e6:,.0f} MB"
        figure = f"{row['metric']} {row['figure']:g}"
        typer.echo(
            f"{row['name']:<38}  {figure:<16} {guided:<7} {size:>9}  {'cached' if row['cached'] else ''}".rstrip()
        )
        typer.echo(f"    {row['main']}" + (f", guided by {row['guide']}" if row["guide"] else ""))
    console.print(f"cache: {cache_folder()}", markup=False, soft_wrap=True)
    console.print(f"licence: {LICENCE_NOTICE}", markup=False, soft_wrap=True)
