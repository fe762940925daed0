"""`invert`: from any image to its noise."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, overload

import torch

from invfast import adapters, arguments, grids, methods, provenance, run
from invfast.adapters import Adapter, DecoderInversion, Prompts, decoder_inversion
from invfast.ambient import neutral
from invfast.arguments import Text
from invfast.inversion import Inversion
from invfast.methods import Method
from invfast.schedule import Schedule
from invfast.warned import warn

logger = logging.getLogger("invfast")


@overload
def invert(
    pipe: Any,
    image: Any,
    prompt: Text | None = "",
    *,
    method: str | Method = "auto",
    num_inference_steps: int = 50,
    timesteps: Sequence[int] | None = None,
    sigmas: Sequence[float] | None = None,
    schedule: Schedule | None = None,
    strength: float = 1.0,
    guidance_scale: float = 1.0,
    negative_prompt: Text | None = None,
    prompt_embeds: torch.Tensor | None = None,
    negative_prompt_embeds: torch.Tensor | None = None,
    height: int | None = None,
    width: int | None = None,
    encode: str | DecoderInversion = "encoder",
    generator: torch.Generator | list[torch.Generator] | None = None,
    runtime: str = "auto",
    dtype: torch.dtype | str | None = None,
    cuda_graph: bool | None = None,
    kernels: str | None = None,
    precompute: Sequence[str] | None = None,
    save_trajectory: bool = False,
    callback_on_step_end: Callable[[Any, int, int | float, dict[str, torch.Tensor]], dict | None] | None = None,
    callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    return_dict: Literal[True] = True,
    **conditions: Any,
) -> Inversion: ...


@overload
def invert(
    pipe: Any,
    image: Any,
    prompt: Text | None = "",
    *,
    return_dict: Literal[False],
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor]: ...


@neutral()
def invert(
    pipe: Any,
    image: Any,
    prompt: Text | None = "",
    *,
    method: str | Method = "auto",
    num_inference_steps: int = 50,
    timesteps: Sequence[int] | None = None,
    sigmas: Sequence[float] | None = None,
    schedule: Schedule | None = None,
    strength: float = 1.0,
    guidance_scale: float = 1.0,
    negative_prompt: Text | None = None,
    prompt_embeds: torch.Tensor | None = None,
    negative_prompt_embeds: torch.Tensor | None = None,
    height: int | None = None,
    width: int | None = None,
    encode: str | DecoderInversion = "encoder",
    generator: torch.Generator | list[torch.Generator] | None = None,
    runtime: str = "auto",
    dtype: torch.dtype | str | None = None,
    cuda_graph: bool | None = None,
    kernels: str | None = None,
    precompute: Sequence[str] | None = None,
    save_trajectory: bool = False,
    callback_on_step_end: Callable[[Any, int, int | float, dict[str, torch.Tensor]], dict | None] | None = None,
    callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    return_dict: bool = True,
    **conditions: Any,
) -> Inversion | tuple[torch.Tensor, torch.Tensor]:
    """Finds the noise from which a diffusion pipeline regenerates images. The pipeline is left untouched.

    Names and meanings are those of diffusers' pipelines.

    Args:
        pipe: of Stable Diffusion 1.x, 2.x or XL, with IP-Adapters and ControlNets or without, Stable Diffusion 3.x,
            FLUX.1, Qwen-Image, Z-Image, Sana, PixArt, a latent consistency model, DDPMPipeline or DDIMPipeline
            (`Adapter.pipelines`). Whatever its scheduler, the grid is DDIM's over its betas, or of rectified flow
            Euler's over its sigmas, shifted as the pipeline does for the image's size.
        image: PIL image, path, numpy array, torch tensor, or a list of them (`images.to_pixels` says which shapes and
            ranges), or latents (B, C, h, w), finite floats, already scaled; or an Inversion, to invert its x_0 again.
        prompt: one text for all images or one an image.
        method: a name (`methods.METHODS`) or a Method instance. "auto" is close to exact for a few evaluations more
            than N on long grids, some 2 N on 20 steps; "ddim" is the plain loop, inexact, at N.
        num_inference_steps: steps of the grid, see `Schedule.from_scheduler`.
        timesteps: explicit times instead, of a diffusion model.
        sigmas: explicit levels instead, of a rectified flow; the scheduler shifts them like its own.
        schedule: a grid of your own; replaces all three.
        strength: how much of the grid is walked, from the data, in (0, 1], as of diffusers' img2img: at .7 of 50 steps
            the 35 cleaner ones. The latents are then no noise yet, and the way back begins where they are.
        guidance_scale: 1 runs one sample an image. Above 1 the network also runs the negative prompt and the inversion
            is a known failure (warned); below 1 is as 1, as in a pipeline's own call (`Direct` and `NullText` have an
            `inverse_guidance` of their own, also below 1). Of Qwen-Image it is true_cfg_scale; of FLUX.1 and latent
            consistency models an input of the network, without a second sample.
        negative_prompt: one text or one an image, for guidance above 1.
        prompt_embeds: (1 or B, tokens, width) floats, any number of tokens, in place of the prompt. A pipeline without
            text encoder and tokenizer takes nothing else.
        negative_prompt_embeds: likewise, in place of the negative prompt. Under guidance the shorter of the two is
            repeated to the longer, so one length must be a multiple of the other; under a mask any will do.
        height: resize to this, a multiple of the VAE's factor; by default the images' own, rounded down.
        width: likewise.
        encode: how images become latents: "encoder", or "decoder" to look for what the pipeline's own decoder made
            them of, for generated images (`DecoderInversion` has its settings). Not of latents, nor in pixel space.
        generator: for methods that draw noise; a list has one an image.
        runtime: where the network runs; "auto" or a name, see `runtimes.RUNTIMES`.
        dtype: the network's, a torch dtype or its name. None keeps the pipeline's, but on a CPU float32 for float16,
            and bfloat16 for a large network where runtime "auto" measures that it pays. Latents stay float32 (float64
            for a float64 network).
        cuda_graph: None captures steps as CUDA graphs where device and runtime allow it, True insists, False declines.
        kernels: implementation of the updates between evaluations, "reference", "cpp" or "triton"; None takes the best
            that the device has (`ops.resolve`), named in the stats.
        precompute: what of the network is computed once, before the loop: "prompt", the keys and values of its
            cross-attention, and "times", its time embeddings. None takes what runtime and network allow, () nothing;
            the stats name what was.
        save_trajectory: keep the latents of every node, on the CPU.
        callback_on_step_end: called as (pipe, step, t, tensors); may return tensors to replace, or set
            `pipe._interrupt = True` to stop. The tensors are ordinary copies of the state's, for the callback to keep
            and to differentiate: it runs outside inference mode, with gradients on unless the call is under
            `torch.no_grad()`. As in diffusers an edit in place counts, like a tensor that is returned.
        callback_on_step_end_tensor_inputs: names from the method's state.
        return_dict: False returns (latents, init_latents).
        **conditions: what else the pipeline's network is told, by diffusers' names (`Adapter.takes`). Stable Diffusion
            XL: prompt_2, negative_prompt_2; pooled_prompt_embeds, negative_pooled_prompt_embeds, (1 or B, width),
            beside prompt_embeds; original_size, target_size, the image's own by default, crops_coords_top_left, and
            negative ones, two integers each. Either of the two with an IP-Adapter: ip_adapter_image, a list of one
            entry an adapter, an image or several, shown to all; or ip_adapter_image_embeds, a list of tensors (1 or B,
            images, ...), under guidance as many rows more, the negative ones first. With a ControlNet: control_image,
            one or one an image, resized to the image's size (for several ControlNets a list of these), and
            controlnet_conditioning_scale, a number or one a ControlNet. Pixel-space pipelines with classes:
            class_labels, one or one an image. Stable Diffusion 3.x: prompt_2, prompt_3 and pooled embeddings, and
            negative ones; FLUX.1: prompt_2 and pooled embeddings; Qwen-Image: prompt_embeds_mask, Sana and PixArt:
            prompt_attention_mask, (1 or B, tokens), and negative ones.

    Returns:
        Inversion, its latents at the noise end of the grid, or where it was interrupted.

    Raises:
        TypeError, ValueError: an argument or a pipeline that cannot be used; the message says what was expected.
        RuntimeError: a runtime asked for by name cannot run here.
        OSError: a runtime asked for by name must export the network, and the cache cannot be used; names INVFAST_CACHE.
        FloatingPointError: latents became non-finite; names step, t, image and dtype.
    """
    chosen, how = methods.resolve(method), decoder_inversion.chosen(encode)
    arguments.check_options(guidance_scale, cuda_graph, callback_on_step_end, callback_on_step_end_tensor_inputs)
    arguments.check_generator(generator)
    opaque = f"{type(chosen).__name__} differentiates through it: take 'eager'" if chosen.differentiates else None
    model = adapters.resolve(pipe)(pipe, runtime, dtype, opaque, precompute)
    if model.guidance(guidance_scale) > 1:
        warn(
            f"inverting at guidance_scale={guidance_scale} amplifies every error of the inversion; "
            "invert at 1.0 and raise the guidance when you edit"
        )
    grid_of = grids.of_call(model, schedule, num_inference_steps, timesteps, sigmas, strength, chosen.own_sampler)
    if how:
        decoder_inversion.check(model, image.init_latents if isinstance(image, Inversion) else image)
    with model.session():
        x, closeness = _x_0(model, image, height, width), None
        if how:
            x, closeness = decoder_inversion.refined(model, x, how)
        grid = grid_of(x.shape)
        texts = arguments.texts(len(x), prompt, negative_prompt, prompt_embeds, negative_prompt_embeds)
        more = model.check(len(x), conditions)
        prompts = Prompts(*texts, prompt_embeds, negative_prompt_embeds, more)
        condition, scale = run.first(model, chosen, guidance_scale, prompts, x)
        problem = run.problem(model, grid, scale, generator, len(x), kernels, condition, cuda_graph)
        second = run.second(model, chosen, problem, prompts, x, guidance_scale)
        stepper = chosen.inverter(problem)
        record = provenance.record(model, grid, chosen, second[1] if second else condition)
        hooks = run.hooks(model, callback_on_step_end, callback_on_step_end_tensor_inputs, save_trajectory)
        found, stats = run.run(model, problem, stepper, {"latents": x}, condition, hooks, chosen, cuda_graph)
        stats = replace(stats, decoder_residual=closeness)
        record |= {"encode": repr(how)} if how else {}
        record["quantised"] = model.denoiser.quantised
        node = stepper.steps.start + found.steps_taken
        kept = {name: found.state[name] for name in stepper.keep if name in found.state}
        if second and chosen.refiner(second[0], node):
            kept, stats = run.refine(model, chosen, *second, found, node, stats, cuda_graph)
    inversion = Inversion(
        latents=found.state["latents"],
        init_latents=x.clone(),
        state=kept,
        schedule=grid,
        method=chosen,
        node=node,
        prompt=texts[0],
        negative_prompt=texts[1],
        guidance_scale=float(guidance_scale),
        stats=stats,
        trajectory=found.trajectory,
        provenance=record,
        conditions={name: value for name, value in more.items() if name not in model.again},
    )
    if node < grid.num_steps:
        logger.warning("interrupted at node %d of %d; the latents are not noise yet", node, grid.num_steps)
    return inversion if return_dict else inversion.to_tuple()


def _x_0(model: Adapter, image: Any, height: int | None, width: int | None) -> torch.Tensor:
    """Images encoded, latents as they are: an inversion's also where they are pixels, which may leave -1 to 1."""
    if not isinstance(image, Inversion):
        return model.encode(image, height, width)
    x = model.latents_of(image.init_latents, height, width)
    if x is None:
        wanted, shape = model.denoiser.form.channels, tuple(image.init_latents.shape)
        raise ValueError(f"the inversion's x_0 has shape {shape}; {type(model.pipe).__name__} needs {wanted} channels")
    return x
