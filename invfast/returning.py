"""`reconstruct`: from an inversion back to its image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, overload

import torch

from invfast import arguments, provenance, run
from invfast.adapters import Prompts
from invfast.ambient import neutral
from invfast.arguments import Text
from invfast.following import check_match, following, said, untold
from invfast.inversion import Inversion
from invfast.reconstruction import Reconstruction, check_output_type, present
from invfast.warned import warn


@overload
def reconstruct(
    pipe: Any,
    inversion: Inversion,
    *,
    prompt: Text | None = None,
    negative_prompt: Text | None = None,
    guidance_scale: float | None = None,
    prompt_embeds: torch.Tensor | None = None,
    negative_prompt_embeds: torch.Tensor | None = None,
    runtime: str = "auto",
    dtype: torch.dtype | str | None = None,
    cuda_graph: bool | None = None,
    kernels: str | None = None,
    precompute: Sequence[str] | None = None,
    output_type: str = "pil",
    callback_on_step_end: Callable[[Any, int, int | float, dict[str, torch.Tensor]], dict | None] | None = None,
    callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    return_dict: Literal[True] = True,
    **conditions: Any,
) -> Reconstruction: ...


@overload
def reconstruct(
    pipe: Any,
    inversion: Inversion,
    *,
    return_dict: Literal[False],
    **options: Any,
) -> tuple[Any]: ...


@neutral()
def reconstruct(
    pipe: Any,
    inversion: Inversion,
    *,
    prompt: Text | None = None,
    negative_prompt: Text | None = None,
    guidance_scale: float | None = None,
    prompt_embeds: torch.Tensor | None = None,
    negative_prompt_embeds: torch.Tensor | None = None,
    runtime: str = "auto",
    dtype: torch.dtype | str | None = None,
    cuda_graph: bool | None = None,
    kernels: str | None = None,
    precompute: Sequence[str] | None = None,
    output_type: str = "pil",
    callback_on_step_end: Callable[[Any, int, int | float, dict[str, torch.Tensor]], dict | None] | None = None,
    callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    return_dict: bool = True,
    **conditions: Any,
) -> Reconstruction | tuple[Any]:
    """Regenerates the images of an inversion: its sampler, grid and prompts, the other way.

    Args:
        pipe: the pipeline it was made with; left untouched.
        inversion: what `invert` returned. One that was interrupted is resumed from the node it reached.
        prompt: None for the inversion's own; another, for all images or one an image, makes it an edit (`edit` has more
            ways to one).
        negative_prompt: likewise.
        guidance_scale: None for the inversion's own, or the one that its method was made for.
        prompt_embeds: (1 or B, tokens, width), needed again where the inversion was given them; other ones replace its
            prompt.
        negative_prompt_embeds: likewise.
        runtime: a name, or "auto" for the one that the inversion ran in; where that cannot run here, as in `invert`,
            and a warning.
        dtype: as in `invert`, but None is the inversion's own, or where that cannot be as in `invert`, and a warning.
        cuda_graph: as in `invert`.
        kernels: as in `invert`.
        precompute: as in `invert`, but None is what was precomputed for the inversion, as far as it can be.
        output_type: "pil", "np" (B, H, W, 3), "pt" (B, 3, H, W), both in [0, 1], or "latent".
        callback_on_step_end: as in `invert`.
        callback_on_step_end_tensor_inputs: as in `invert`.
        return_dict: False returns (images,).
        **conditions: as in `invert`, where they are others; the inversion's own are known, but for pooled embeddings
            and images, which are needed again.

    Returns:
        Reconstruction; with return_dict=False the tuple (images,).

    Raises:
        ValueError: the pipeline's latents or prediction type are not the inversion's, embeddings are missing, or an
            argument cannot be used.
        FloatingPointError: latents became non-finite.
    """
    if not isinstance(inversion, Inversion):
        raise TypeError(f"inversion must be what invert() returns, got {type(inversion).__name__}")
    own = inversion.method.guidance_scale or inversion.guidance_scale
    scale = own if guidance_scale is None else guidance_scale
    arguments.check_options(scale, cuda_graph, callback_on_step_end, callback_on_step_end_tensor_inputs)
    check_output_type(output_type)
    model = following(inversion, pipe, runtime, dtype, precompute)
    check_match(model, inversion, prompt_embeds, prompt)
    grid, kept = inversion.schedule, {"latents": inversion.latents, **inversion.state}
    kept = {name: value.to(model.device, model.latent_dtype) for name, value in kept.items()}
    batch = len(inversion.latents)
    with model.session():
        edited = prompt is not None or negative_prompt is not None
        more = model.check(batch, {**untold(inversion, prompt, negative_prompt), **conditions})
        texts = said(inversion, prompt, negative_prompt, prompt_embeds, negative_prompt_embeds)
        prompts = Prompts(*texts, prompt_embeds, negative_prompt_embeds, more)
        condition = model.condition(kept["latents"], prompts, scale)
        for difference in provenance.differences(inversion.provenance, model, condition, texts=not edited):
            warn(f"{difference} not what the inversion was made with")
        kept, condition = inversion._each(kept, condition)
        problem = run.problem(model, grid, scale, None, len(kept["latents"]), kernels, condition, cuda_graph)
        stepper = inversion.method.sampler(problem, inversion.node)
        hooks = run.hooks(model, callback_on_step_end, callback_on_step_end_tensor_inputs, False)

        def check() -> None:
            if provenance.requantised(inversion.provenance, model):
                warn("the int8 network is not the one that the inversion was made with")

        found, stats = run.run(model, problem, stepper, kept, condition, hooks, inversion.method, cuda_graph, check)
        latents = found.state["latents"]
        output = latents if output_type == "latent" else present(model.decode(latents), output_type)
    partner = found.state.get("partner")
    return Reconstruction(images=output, latents=latents, stats=stats, partner=partner) if return_dict else (output,)
