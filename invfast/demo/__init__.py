"""The bundled pipelines: small, really trained diffusion models, and images to try them on.

Works offline. emoji64/README.md is its model card.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import NamedTuple

import diffusers
import torch
from diffusers import (
    AutoencoderKL,
    DDPMPipeline,
    FlowMatchEulerDiscreteScheduler,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from transformers import CLIPTextModel

from invfast.demo.reparametrised import ReparametrisedUNet
from invfast.images import load
from invfast.schedule import FLOW, PREDICTION_TYPES

ROOT = Path(__file__).parent
DTYPE = "dtype" if tuple(map(int, diffusers.__version__.split(".")[:2])) >= (0, 42) else "torch_dtype"
"""Its name in diffusers, which warns of the other one."""
_loading = threading.Lock()
"""diffusers and transformers load with the process's default dtype and initialisers changed."""

PROMPTS = {
    "peach": "noto peach",
    "soccer_ball": "twemoji soccer ball",
    "astronaut": "photo astronaut",
    "cat": "photo cat",
    "coffee": "photo coffee",
    "cat_face": "noto cat face",
    "tulip": "noto tulip",
    "pizza": "twemoji slice of pizza",
    "rocket": "twemoji rocket",
    "strawberry": "noto strawberry",
    "guitar": "noto guitar",
    "owl": "twemoji owl",
    "house": "twemoji house building",
    "apple": "noto red apple",
    "astronaut_suit": "photo astronaut",
    "coffee_cup": "photo coffee",
}


SIZES = {"emoji64": 64, "emoji64-flow": 64, "emoji32": 32}
"""Side in pixels of what each bundled pipeline was trained on, by the name of its folder; the first is the default."""


class Sample(NamedTuple):
    """A 64 px RGB image and the caption the model knows it by."""

    image: Image.Image
    prompt: str


def load_pipeline(
    prediction_type: str = "epsilon", dtype: torch.dtype = torch.float32, early: bool = False
) -> StableDiffusionPipeline:
    """The bundled pipeline: 64 px images, latents (4, 16, 16), DDIM scheduler, prompts of at most 10 words.

    Args:
        prediction_type: "epsilon", as trained; "v_prediction", "sample" or "flow" give the same network behind an
            exact re-parametrisation of its output, with the scheduler's config to match. A flow's noise ends at sigma
            = .936, where the betas end.
        dtype: of all weights.
        early: UNet and text encoder as they were after 420 of their 6,000 steps: an imprecise model on purpose.

    Raises:
        ValueError: unknown prediction type.
    """
    if prediction_type not in PREDICTION_TYPES:
        raise ValueError(f"unknown prediction_type {prediction_type!r}; expected one of {PREDICTION_TYPES}")
    folder = ROOT / "emoji64"
    given = {DTYPE: dtype, "local_files_only": True, "use_safetensors": True}
    with _loading:
        parts = {"unet": UNet2DConditionModel, "text_encoder": CLIPTextModel} if early else {}
        networks = {
            name: cls.from_pretrained(ROOT / "emoji64-early" / name, **given).eval() for name, cls in parts.items()
        }
        pipe = StableDiffusionPipeline.from_pretrained(
            folder, safety_checker=None, requires_safety_checker=False, **networks, **given
        )
        if prediction_type != "epsilon":
            pipe.register_to_config(unet=("invfast", "ReparametrisedUNet"))
            pipe.unet = ReparametrisedUNet.wrap(pipe.unet, pipe.scheduler.alphas_cumprod, prediction_type)
            if prediction_type == FLOW:
                pipe.scheduler = FlowMatchEulerDiscreteScheduler()
            else:
                kind = type(pipe.scheduler)
                pipe.scheduler = kind.from_config(pipe.scheduler.config, prediction_type=prediction_type)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def load_flow_pipeline(dtype: torch.dtype = torch.float32) -> StableDiffusion3Pipeline:
    """The bundled rectified flow: 64 px images, latents (4, 16, 16), prompts as of `load_pipeline`, trained as a flow.

    Args:
        dtype: of all weights.
    """
    given = {DTYPE: dtype, "local_files_only": True, "use_safetensors": True}
    with _loading:
        vae = AutoencoderKL.from_pretrained(ROOT / "emoji64" / "vae", **given).eval()
        vae.register_to_config(shift_factor=0.0)  # the pipeline adds it, None or not
        beside = {"vae": vae, "text_encoder_3": None, "tokenizer_3": None}
        pipe = StableDiffusion3Pipeline.from_pretrained(ROOT / "emoji64-flow", **beside, **given)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def load_pixel_pipeline(dtype: torch.dtype = torch.float32) -> DDPMPipeline:
    """The bundled pixel-space pipeline: unconditional, emoji (B, 3, 32, 32), DDPM scheduler, weights of `dtype`."""
    given = {DTYPE: dtype, "local_files_only": True, "use_safetensors": True}
    with _loading:
        pipe = DDPMPipeline.from_pretrained(ROOT / "emoji32", **given)
    pipe.set_progress_bar_config(disable=True)
    return pipe


PIPELINES = {"emoji64": load_pipeline, "emoji64-flow": load_flow_pipeline, "emoji32": load_pixel_pipeline}
"""What loads each bundled pipeline, by the name of its folder."""


def load_images() -> dict[str, Sample]:
    """Named 64 px samples with their prompts: emoji on white, and real photographs (scikit-image's, cropped)."""
    return {name: Sample(load(ROOT / "images" / f"{name}.png"), prompt) for name, prompt in PROMPTS.items()}
