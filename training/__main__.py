"""python -m training COMMAND: data, vae, unet, pixel, flow, export, eval; each goes on where it left off."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from diffusers import AutoencoderKL, DDPMScheduler
from safetensors.torch import load_file, save

from invfast import demo
from invfast.files import write_atomically
from training import data as training_data
from training import evaluation, models, objectives, sheets
from training import export as export_
from training.loop import Recipe, averaged, console, keep_sitting, train

RUNS = Path(__file__).with_name("runs")
SITTINGS = Path(__file__).with_name("sittings")
"""Committed: where an unfinished run stood, so that a lost machine costs one sitting."""
# Steps times batch is what an evening of one or two cores can do.
VAE = Recipe(steps=6800, batch=16, rate=8e-4)
POOL = 40_960
UNET = Recipe(steps=6000, batch=64, rate=6e-4, decay=0.9995)
PIXEL = Recipe(steps=4000, batch=32, rate=5e-4, decay=0.9995)
FLOW = Recipe(steps=3000, batch=32, rate=1e-3, decay=0.9995)

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
Runs = Annotated[Path, typer.Option(help="Folder of downloads, checkpoints, logs and sample sheets.")]
Threads = Annotated[int, typer.Option(help="CPU threads; the same number gives the same bits.")]


@app.command()
def data(runs: Runs = RUNS) -> None:
    """Fetch the packages and say what is in them."""
    found = training_data.fetch(runs / "data")
    console.print(f"{len(found.emoji)} emoji and {len(found.photos)} photographs to train on, ", end="")
    console.print(f"{len(found.held_emoji)} and {len(found.held_photos)} held out; SHA-256 {found.digest()}")


@app.command()
def vae(runs: Runs = RUNS, threads: Threads = 1) -> None:
    """Train the autoencoder."""
    found = _start(runs, threads)
    model = models.vae()
    loss = objectives.autoencoder(model, found, VAE)
    train(model, loss, VAE, runs / "vae", sheet=sheets.round_trip(found, runs / "vae"), sitting=_sitting("vae"))


@app.command()
def unet(
    runs: Runs = RUNS,
    threads: Threads = 1,
    bfloat16: Annotated[bool, typer.Option("--bfloat16", help="Autocast: 1.4x faster where the CPU has it.")] = False,
) -> None:
    """Train the UNet and the text encoder on the trained autoencoder's latents."""
    found = _start(runs, threads)
    folder = runs / "unet"
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = models.tokenizer(found.captions)
    vae = models.vae()
    averaged(runs / "vae", vae)
    vae.register_to_config(scaling_factor=export_.scaling_factor(vae, found))
    denoiser = models.Denoiser(len(tokenizer))
    loss = objectives.denoising(denoiser, _pool(folder, vae, found, tokenizer), _alphas(), UNET, bfloat16)
    pipe = export_.pipeline(vae, tokenizer, denoiser)
    train(denoiser, loss, UNET, folder, sheet=sheets.prompts(pipe, folder), sitting=_sitting("unet"))


@app.command()
def pixel(runs: Runs = RUNS, threads: Threads = 1) -> None:
    """Train the unconditional network of 32 px emoji."""
    found = _start(runs, threads)
    model = models.pixel_unet()
    loss = objectives.pixels(model, found, _alphas(), PIXEL)
    train(model, loss, PIXEL, runs / "pixel", sheet=sheets.emoji(runs / "pixel"), sitting=_sitting("pixel"))


@app.command()
def flow(runs: Runs = RUNS, threads: Threads = 1) -> None:
    """Train the rectified-flow transformer and its text encoders on the bundled autoencoder's latents."""
    found = _start(runs, threads)
    folder = runs / "flow"
    folder.mkdir(parents=True, exist_ok=True)
    vae, tokenizer = demo.load_pipeline().vae, models.tokenizer(found.captions, models.FLOW_SPECIAL)
    denoiser = models.FlowDenoiser(len(tokenizer))
    loss = objectives.velocity(denoiser, _pool(folder, vae, found, tokenizer), FLOW)
    pipe = export_.flow_pipeline(vae, tokenizer, denoiser)
    train(denoiser, loss, FLOW, folder, sheet=sheets.prompts(pipe, folder), sitting=_sitting("flow"))


@app.command()
def sitting(runs: Runs = RUNS) -> None:
    """Keep where the runs stand as float16 weights under training/sittings, for a commit."""
    for name in ("vae", "unet", "pixel", "flow"):
        if (runs / name / "checkpoint.pt").exists():
            facts = keep_sitting(
                runs / name, _sitting(name), early=name == "unet"
            )  # the one whose early weights are kept
            console.print(f"{_sitting(name)}: step {facts['steps']}, {facts['seconds'] / 3600:.1f} h")


@app.command()
def export(
    runs: Runs = RUNS,
    output: Annotated[Path, typer.Option(help="Folder that takes a folder each.")] = demo.ROOT,
) -> None:
    """Write the trained networks as diffusers pipelines in float16, with their model cards."""
    found = training_data.fetch(runs / "data")
    for run, write in (("unet", export_.write), ("flow", export_.write_flow)):
        if (runs / run).exists():
            write(runs, output, found)


@app.command(name="eval")
def evaluate_(
    pipelines: Annotated[list[Path], typer.Argument(help="Folders of pipelines to compare.")],
    runs: Runs = RUNS,
    threads: Threads = 2,
    captions: Annotated[int, typer.Option(help="How many captions to generate.")] = 200,
) -> None:
    """One table for any weights: round trip, noise prediction, and whether pictures are what their caption says."""
    found = _start(runs, threads)
    evaluation.table(pipelines, found, captions)


def _pool(folder: Path, vae: AutoencoderKL, found: training_data.Data, tokenizer) -> dict[str, torch.Tensor]:
    """Latents to train on, made once."""
    path = folder / "pool.safetensors"
    if not path.exists():
        made = objectives.latent_pool(vae, vae.config.scaling_factor, found, tokenizer, POOL, UNET.seed)
        write_atomically(path, save(made))
    return load_file(path)


def _sitting(name: str) -> Path:
    return SITTINGS / f"{name}.safetensors"


def _start(runs: Path, threads: int) -> training_data.Data:
    torch.set_num_threads(threads)
    return training_data.fetch(runs / "data")


def _alphas() -> torch.Tensor:
    return DDPMScheduler(**models.SCHEDULE).alphas_cumprod


if __name__ == "__main__":
    app()
