"""The commands about latents and classes: parsing only, as in `tilefuse.cli`, which they are part of."""

from __future__ import annotations

from collections.abc import Callable

import click


@click.command(short_help="Tell what images show.")
@click.argument("inputs", nargs=-1, required=True, metavar="IN...")
@click.option("-m", "--model", default="cnn-digits", show_default=True, help="A bundled classifier, or a checkpoint.")
@click.option("--backend", default="auto", show_default=True, help="Backend to use (see doctor).")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON line an image.")
def classify(inputs: tuple[str, ...], model: str, backend: str, as_json: bool) -> None:
    """Tell what images show: made gray and resized to the network's size; digits are light on black."""
    from tilefuse.commands.classify import classify_files

    classify_files(inputs, model=model, backend=backend, as_json=as_json)


@click.command()
@click.argument("source", metavar="IN")
@click.option("-o", "--output", required=True, help="Image file to write, of the network's size.")
@click.option("-m", "--model", default="vae-digits", show_default=True, help="A variational autoencoder.")
@click.option("--backend", default="auto", show_default=True, help="Backend to use (see doctor).")
@click.option("--overwrite", is_flag=True, help="Replace an output that exists.")
def reconstruct(source: str, output: str, model: str, backend: str, overwrite: bool) -> None:
    """Encode an image into a latent and draw it again."""
    from tilefuse.commands.reconstruct import reconstruct_file

    reconstruct_file(model, source, output, backend=backend, overwrite=overwrite)


def _codec_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add what compress and decompress share."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print JSON."),
        click.option("--overwrite", is_flag=True, help="Replace an output that exists."),
        click.option("--memory", default=None, metavar="SIZE", help="Memory budget, for instance 768MiB or 2GiB."),
        click.option("--backend", default="auto", show_default=True, help="Backend to use (see doctor)."),
        click.option("-m", "--model", default="autoencoder", show_default=True, help="An autoencoder of images."),
    ):
        command = option(command)
    return command


@click.command(short_help="Compress an image into latents, lossily.")
@click.argument("source", metavar="IN")
@click.option("-o", "--output", required=True, metavar="F.tfz", help="File to write.")
@_codec_options
def compress(source: str, output: str, model: str, backend: str, memory: str | None, **flags: bool) -> None:
    """Compress an image into latents, lossily; prints bits a pixel of the whole file, and PSNR."""
    from tilefuse.commands.compress import compress_image

    compress_image(source, output, model=model, backend=backend, memory=memory, **flags)


@click.command()
@click.argument("source", metavar="F.tfz")
@click.option("-o", "--output", required=True, metavar="OUT", help="Image file to write.")
@_codec_options
def decompress(source: str, output: str, model: str, backend: str, memory: str | None, **flags: bool) -> None:
    """Decode what compress wrote into an image."""
    from tilefuse.commands.compress import decompress_image

    decompress_image(source, output, model=model, backend=backend, memory=memory, **flags)
