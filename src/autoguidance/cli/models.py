"""`autoguidance models`: the shipped pairs and the published settings that can be used by name, and the shipped ones' cards."""

import json
from dataclasses import asdict
from typing import Annotated, Any

import typer

from autoguidance.cli.common import app, console
from autoguidance.errors import UserError


@app.command("models", epilog="Example: autoguidance models --json")
def models(
    name: Annotated[str | None, typer.Argument(help="A shipped pair, whose model card is printed.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the list, or the pair with its card, as JSON.")
    ] = False,
) -> None:
    """List the pairs that come with the package, for --pair NAME (shipped:NAME where a file or folder is called so), then the
    published pairs and single models: networks, w, the published figure, size, and what is in the cache. With NAME: print
    that shipped pair's model card.
    """
    if name is not None:
        _card(name, as_json)
    else:
        _list(as_json)


def _card(name: str, as_json: bool) -> None:
    from autoguidance.zoo.published import PRESET_PREFIX
    from autoguidance.zoo.shipped_pairs import describe_shipped, read_card

    if name.startswith(PRESET_PREFIX):
        raise UserError(f"{name} has no card, only shipped pairs have; `autoguidance models` lists all")
    card = read_card(name)
    typer.echo(json.dumps({**asdict(describe_shipped(name)), "card": card}, indent=1) if as_json else card.rstrip())


def _list(as_json: bool) -> None:
    from autoguidance.zoo import LICENCE_NOTICE, PUBLISHED_PAIRS, cache_folder, is_cached
    from autoguidance.zoo.published import num_parameters
    from autoguidance.zoo.shipped_pairs import describe_shipped, shipped_names

    shipped = [describe_shipped(name) for name in shipped_names()]
    rows: list[dict[str, Any]] = [
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
        content = {
            "shipped": [asdict(pair) for pair in shipped],
            "licence": LICENCE_NOTICE,
            "cache": str(cache_folder()),
            "models": rows,
        }
        typer.echo(json.dumps(content, indent=1))
        return
    for pair in shipped:
        size = f"{pair.num_bytes / 1e6:.1f} MB"
        classes = f", {pair.num_classes} classes" if pair.num_classes else ""
        typer.echo(f"{pair.name:<38}  {'shipped':<16} w {pair.weight:<5g} {size:>9}  {pair.licence or ''}".rstrip())
        typer.echo(
            f"    {pair.data}, {pair.resolution} x {pair.resolution}{classes}; {pair.parameters_main / 1e6:.2f} M parameters, guided by "
            f"{pair.parameters_guide / 1e6:.2f} M"
        )
    for row in rows:
        guided = f"w {row['weight']:g}" if row["guide"] else ""
        # Stored in float16: two bytes a parameter.
        size = f"{2 * row['parameters'] / 1e6:,.0f} MB"
        figure = f"{row['metric']} {row['figure']:g}"
        typer.echo(
            f"{row['name']:<38}  {figure:<16} {guided:<7} {size:>9}  {'cached' if row['cached'] else ''}".rstrip()
        )
        typer.echo(f"    {row['main']}" + (f", guided by {row['guide']}" if row["guide"] else ""))
    if shipped:
        console.print(f"model card: autoguidance models {shipped[0].name}", markup=False, soft_wrap=True)
    console.print(f"cache: {cache_folder()}", markup=False, soft_wrap=True)
    console.print(f"licence of the published: {LICENCE_NOTICE}", markup=False, soft_wrap=True)
