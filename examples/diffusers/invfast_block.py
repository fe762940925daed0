"""A custom block for diffusers' modular pipelines: image and prompt in, the latents it is sampled from out.

Of Stable Diffusion 1.x and 2.x. See docs/diffusers.md.
"""

from copy import deepcopy
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.modular_pipelines import ComponentSpec, InputParam, ModularPipelineBlocks, OutputParam, PipelineState
from transformers import CLIPTextModel, CLIPTokenizer

import invfast


class InvertStep(ModularPipelineBlocks):
    """Inverts images with the components of a modular pipeline, and leaves these as they are."""

    @property
    def description(self) -> str:
        return "Finds the noise from which images are sampled, by invfast.invert"

    @property
    def expected_components(self) -> list[ComponentSpec]:
        return [
            ComponentSpec("vae", AutoencoderKL),
            ComponentSpec("text_encoder", CLIPTextModel),
            ComponentSpec("tokenizer", CLIPTokenizer),
            ComponentSpec("unet", UNet2DConditionModel),
            ComponentSpec("scheduler", DDIMScheduler),
        ]

    @property
    def inputs(self) -> list[InputParam]:
        return [
            InputParam("image", required=True, description="what invfast.invert takes: PIL, path, array, or a list"),
            InputParam("prompt", type_hint=str | list[str], default="", description="one for all, or one an image"),
            InputParam("num_inference_steps", type_hint=int, default=50),
            InputParam("method", default="auto", description="a name or an instance of invfast.methods"),
            InputParam("invert_kwargs", type_hint=dict, default={}, description="further arguments of invfast.invert"),
        ]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return [
            OutputParam("latents", type_hint=torch.Tensor, description="(B, C, h, w) the noise, float32"),
            OutputParam("inversion", type_hint=invfast.Inversion, description="what invfast.reconstruct goes back by"),
        ]

    def __call__(self, components: Any, state: PipelineState) -> tuple[Any, PipelineState]:
        asked = self.get_block_state(state)
        parts = {name: getattr(components, name, None) for name in self.component_names}
        missing = [name for name, part in parts.items() if part is None]
        if missing:
            raise ValueError(f"InvertStep needs {', '.join(missing)}: call load_components() or update_components()")
        parts["scheduler"] = deepcopy(parts["scheduler"])  # StableDiffusionPipeline corrects old settings in place
        absent = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        pipe = StableDiffusionPipeline(**parts, **absent)
        how = {"method": asked.method, "num_inference_steps": asked.num_inference_steps, **asked.invert_kwargs}
        asked.inversion = invfast.invert(pipe, asked.image, asked.prompt, **how)
        asked.latents = asked.inversion.latents
        self.set_block_state(state, asked)
        return components, state
