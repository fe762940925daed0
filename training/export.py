"""Trained networks as the folders that are bundled: diffusers pipelines in float16, and a model card."""

from __future__ import annotations

import copy
import subprocess
from pathlib import Path
from string import Template

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
)
from safetensors.torch import load_file, save_file

from training import models
from training.batches import draw
from training.data import Data
from training.loop import averaged

CARD = Path(__file__).with_name("card.md")
FLOW_CARD = Path(__file__).with_name("flow_card.md")


@torch.inference_mode()
def scaling_factor(vae: AutoencoderKL, data: Data) -> float:
    """1 / std of the posterior means of 512 training pictures: latents of unit variance."""
    pictures, _ = draw(data, np.random.default_rng(1), 512)
    return 1 / vae.encode(pictures).latent_dist.mean.std().item()


def pipeline(vae: AutoencoderKL, tokenizer, denoiser: models.Denoiser) -> StableDiffusionPipeline:
    """The networks as one text-to-image pipeline."""
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=denoiser.text_encoder,
        tokenizer=tokenizer,
        unet=denoiser.unet,
        scheduler=models.scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def flow_pipeline(vae: AutoencoderKL | None, tokenizer, denoiser: models.FlowDenoiser) -> StableDiffusion3Pipeline:
    """The flow's networks as a Stable Diffusion 3 pipeline without its third text encoder."""
    if vae is not None:
        vae.register_to_config(shift_factor=0.0)  # the pipeline adds it, None or not
    pipe = StableDiffusion3Pipeline(
        transformer=denoiser.transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae,
        text_encoder=denoiser.text_encoder,
        tokenizer=tokenizer,
        text_encoder_2=denoiser.text_encoder_2,
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def write(runs: Path, output: Path, data: Data) -> None:
    """emoji64, emoji64-early (UNet and text encoder at a tenth of the steps) and emoji32 under `output`."""
    facts = {"digest": data.digest(), "commit": _commit()}
    vae, tokenizer = models.vae(), models.tokenizer(data.captions)
    facts |= _facts("vae", averaged(runs / "vae", vae))
    vae.register_to_config(scaling_factor=scaling_factor(vae, data))
    denoiser = models.Denoiser(len(tokenizer))
    early = copy.deepcopy(denoiser)
    facts |= _facts("unet", averaged(runs / "unet", denoiser))
    _save(pipeline(vae, tokenizer, denoiser), output / "emoji64")
    facts |= _facts("early", averaged(runs / "unet", early, "early.pt"))
    for name, network in (("unet", early.unet), ("text_encoder", early.text_encoder)):
        network.half().save_pretrained(output / "emoji64-early" / name)
    _readable_by_all(output / "emoji64-early")
    pixel = models.pixel_unet()
    facts |= _facts("pixel", averaged(runs / "pixel", pixel))
    DDPMPipeline(pixel.half(), DDPMScheduler(**models.SCHEDULE, clip_sample=False)).save_pretrained(output / "emoji32")
    (output / "emoji64" / "README.md").write_text(Template(CARD.read_text()).substitute(facts))


def write_flow(runs: Path, output: Path, data: Data) -> None:
    """emoji64-flow under `output`, without the autoencoder, which lies in emoji64."""
    tokenizer = models.tokenizer(data.captions, models.FLOW_SPECIAL)
    denoiser = models.FlowDenoiser(len(tokenizer))
    run = averaged(runs / "flow", denoiser)
    pipe = flow_pipeline(None, tokenizer, denoiser)
    _save(pipe, output / "emoji64-flow")
    facts = {"digest": data.digest(), "commit": _commit(), **_facts("flow", run)}
    (output / "emoji64-flow" / "README.md").write_text(Template(FLOW_CARD.read_text()).substitute(facts))


def _save(pipe: DiffusionPipeline, folder: Path) -> None:
    pipe.to(torch.float16).save_pretrained(folder)
    _readable_by_all(folder)


def _readable_by_all(folder: Path) -> None:
    """Names of weights and classes that transformers 4 knows too; it would start from random weights without a word."""
    for path in folder.glob("text_encoder*/model.safetensors"):
        tensors = load_file(path)
        beside = ("text_model.", "text_projection.")
        named = {name if name.startswith(beside) else f"text_model.{name}": x for name, x in tensors.items()}
        save_file(named, path, {"format": "pt"})
    for path in (*folder.glob("tokenizer*/tokenizer_config.json"), folder / "model_index.json"):
        if path.exists():
            path.write_text(path.read_text().replace("TokenizersBackend", "PreTrainedTokenizerFast"))


def _facts(name: str, run: dict[str, float]) -> dict[str, str]:
    return {f"{name}_steps": f"{run['steps']:,}", f"{name}_hours": f"{run['seconds'] / 3600:.1f}"}


def _commit() -> str:
    return subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
