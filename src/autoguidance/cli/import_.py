"""`autoguidance import`: published networks and reference statistics become files of ours; their code is never run."""

from pathlib import Path
from typing import Annotated

import typer

from autoguidance.cli.common import app, console, progress_bar
from autoguidance.errors import UserError


@app.command(
    "import",
    epilog="Example: autoguidance import edm2-img512-s-2147483-0.130.pkl --out edm2-s.safetensors",
)
def import_(
    source: Annotated[
        str, typer.Argument(metavar="FILE|URL|NAME", help="A .pkl or .npz file, its address, or a published name.")
    ],
    out: Annotated[Path, typer.Option(help="NAME.safetensors for a network, NAME.npz for reference statistics.")],
    sha256: Annotated[str | None, typer.Option(help="Refuse a download with another SHA-256.")] = None,
) -> None:
    """Turn a published EDM2 network or reference statistics into a file of ours. Nothing in the file is executed."""
    from autoguidance.zoo import LICENCE_NOTICE, cache_folder, fetch, file_url, import_network, import_reference, is_url
    from autoguidance.zoo.published import is_published_name

    if out.suffix not in (".safetensors", ".npz"):
        raise UserError(f"--out {out}: give NAME.safetensors for a network or NAME.npz for reference statistics")
    origin = None
    path = Path(source)
    if not path.exists() and is_published_name(source):
        origin = file_url(source)
    elif is_url(source):
        origin = source
    if origin is not None:
        name = origin.rsplit("/", 1)[-1].split("?")[0] or "file"
        with progress_bar("fetch") as progress:
            path = fetch(origin, cache_folder() / "downloads" / name, sha256=sha256, progress=progress)
    try:
        if out.suffix == ".npz":
            written = import_reference(path, out, origin)
        else:
            written = [import_network(path, out, origin)]
    finally:
        if origin is not None:
            path.unlink(missing_ok=True)
    console.print(f"{', '.join(map(str, written))} written", markup=False, soft_wrap=True)
    console.print(f"licence: {LICENCE_NOTICE}", markup=False, soft_wrap=True)
