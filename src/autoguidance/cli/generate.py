"""`autoguidance generate`: draw images from a model or a guided pair."""

from pathlib import Path
from typing import Annotated

import typer

from autoguidance.cli import options as o
from autoguidance.cli.common import app, console, progress_bar


@app.command(
    epilog="Example: autoguidance generate --pair runs/digits/pair.json --seeds 0-63 --out out/digits. "
    "Under torchrun the processes share the seeds; the images are the same."
)
@o.with_sampler_options
def generate(
    out: Annotated[Path, typer.Option(help="Output folder; the same command continues what is there.")],
    sampler: o.SamplerOptions,
    seeds: Annotated[str, typer.Option(help="Seeds, e.g. 0-63,70; image k depends on seed k alone.")] = "0-15",
    classes: Annotated[
        str, typer.Option(help="random, balanced, or a list such as 3,5-7 (taken in turn by seed).")
    ] = "random",
    batch: Annotated[int, typer.Option(help="Images finished at a time; changes memory, never the result.")] = 64,
    image_format: Annotated[
        str, typer.Option("--format", help="png or npz (with seeds, classes and raw latents).")
    ] = "png",
    device: o.DeviceOption = "auto",
    dtype: o.DtypeOption = None,
    noise_device: Annotated[
        str, typer.Option(help="Where noise is drawn; cpu makes it the same on every device.")
    ] = "cpu",
) -> None:
    """Draw images from a model or a guided pair."""
    import torch

    from autoguidance.data.encoders import make_encoder
    from autoguidance.guidance.guided import licences_of
    from autoguidance.sample import ClassSelection, image_encoder, parse_seeds, sample_batches
    from autoguidance.sample.files import SampleFolder
    from autoguidance.train.distributed import choose_device, join_world
    from autoguidance.zoo import identify, is_remote
    from autoguidance.zoo.published import needs_vae

    spec = sampler.build()
    wanted = list(dict.fromkeys(parse_seeds(seeds)))
    choose_device(noise_device)
    with join_world(device) as world, torch.no_grad():
        if is_remote(spec.main) and needs_vae(spec.main):  # before hundreds of megabytes are fetched for nothing
            make_encoder({"name": "vae"}, img_channels=4, img_resolution=64, device=world.device).prepare()
        body = o.parse_dtype(dtype, world.device)
        with progress_bar("models") as progress:
            denoiser = spec.denoiser(device=world.device, dtype=body, progress=progress)
        selection = ClassSelection(classes, denoiser.num_classes)
        assert spec.solver is not None
        settings = {
            "method": spec.method,
            "main": spec.main,
            "guide": spec.guide,
            "weight": spec.weight,
            "unconditional": spec.unconditional,
            "cfg_weight": spec.cfg_weight,
            "interval": None if spec.interval is None else [str(v) for v in spec.interval],
            "solver": spec.solver.describe(),
            "classes": selection.name,
            "class_names": list(getattr(denoiser, "class_names", ())),
            "noise_device": noise_device,
            "dtype": dtype,
        }
        # A name alone is not enough: after more training `--main RUN` is another model.
        names = {
            "main": spec.main,
            "guide": spec.guide if spec.weight != 1 else None,
            "unconditional": spec.unconditional if spec.cfg_weight != 1 else None,
        }
        settings["models"] = {role: identify(name) for role, name in names.items() if name is not None}
        if licences := licences_of(denoiser):
            settings["licence"] = licences
        encoder = image_encoder(denoiser)
        world.from_main(lambda: SampleFolder(out, settings, image_format) and None)
        folder = SampleFolder(out, settings, image_format)
        missing = world.from_main(lambda: folder.missing(wanted))
        mine = missing[world.rank :: world.size]
        with progress_bar("generate") as progress:
            done = 0
            for samples in sample_batches(
                denoiser, mine, classes=selection, solver=spec.solver, batch_size=batch, noise_device=noise_device
            ):
                folder.write(samples, encoder.decode(samples.latents))
                done += len(samples.seeds)
                progress(done, len(mine), {})
        world.barrier()  # all images must be there before they are joined
        world.from_main(lambda: folder.finish(wanted))
        if world.is_main:
            where = out if image_format == "png" else folder.npz_path
            console.print(f"{len(wanted)} images ({len(missing)} new) in {where}")
