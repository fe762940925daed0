"""`edit`: from an inversion to the image it would have been under another prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, overload

import torch

from invfast import arguments, run
from invfast.adapters import Adapter
from invfast.ambient import neutral
from invfast.arguments import Text
from invfast.editing import masks, rows
from invfast.editing.asked import Asked
from invfast.editing.editors import Editor, FlowEdit, Region, innermost, resolve
from invfast.editing.steppers import AlongDifference, Kept, beside, of_all, path_of
from invfast.following import check_match, following
from invfast.inversion import Inversion
from invfast.methods import Problem
from invfast.methods.base import State, Stepper
from invfast.reconstruction import Reconstruction, check_output_type, present
from invfast.schedule import FLOW


@overload
def edit(
    pipe: Any,
    inversion: Inversion,
    prompt: Text,
    *,
    method: str | Editor = "prompt",
    guidance_scale: float = 7.5,
    negative_prompt: Text | None = None,
    mask: Any = None,
    style: Inversion | None = None,
    runtime: str = "auto",
    dtype: torch.dtype | str | None = None,
    cuda_graph: bool | None = None,
    kernels: str | None = None,
    output_type: str = "pil",
    callback_on_step_end: Callable[[Any, int, int | float, dict[str, torch.Tensor]], dict | None] | None = None,
    callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    return_dict: Literal[True] = True,
    **conditions: Any,
) -> Reconstruction: ...


@overload
def edit(
    pipe: Any,
    inversion: Inversion,
    prompt: Text,
    *,
    return_dict: Literal[False],
    **options: Any,
) -> tuple[Any]: ...


@neutral()
def edit(
    pipe: Any,
    inversion: Inversion,
    prompt: Text,
    *,
    method: str | Editor = "prompt",
    guidance_scale: float = 7.5,
    negative_prompt: Text | None = None,
    mask: Any = None,
    style: Inversion | None = None,
    runtime: str = "auto",
    dtype: torch.dtype | str | None = None,
    cuda_graph: bool | None = None,
    kernels: str | None = None,
    output_type: str = "pil",
    callback_on_step_end: Callable[[Any, int, int | float, dict[str, torch.Tensor]], dict | None] | None = None,
    callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    return_dict: bool = True,
    **conditions: Any,
) -> Reconstruction | tuple[Any]:
    """Regenerates inverted images under another prompt. Pipeline and inversion are left untouched.

    Args:
        pipe: the pipeline that the inversion was made with.
        inversion: what `invert` returned, gone through to the noise. Any method's whose way back is not a text
            embedding tuned to the source; those edit by `method="prompt"`.
        prompt: one text for all images or one an image.
        method: a name (`editing.EDITORS`) or an Editor: "prompt", "prompt_to_prompt", "masactrl", "portrait",
            "direct", "flow_edit".
        guidance_scale: of the edit. The source beside it goes down without, as it was inverted.
        negative_prompt: of the edit, likewise.
        mask: what may change, 1, and what may not, 0: `editing.read_mask` says which shapes. Latents outside stay on
            the path of the inversion, which needs `invert(..., save_trajectory=True)`; pixels outside are those of the
            image as the autoencoder gives it.
        style: for "portrait", the inversion of the other image, or of as many: same grid, method and size.
        runtime: as in `reconstruct`.
        dtype: as in `reconstruct`.
        cuda_graph: as in `invert`.
        kernels: as in `invert`.
        output_type: "pil", "np" (B, H, W, 3), "pt" (B, 3, H, W), both in [0, 1], or "latent".
        callback_on_step_end: as in `invert`; "latents" are (B, rows * C, h, w), the source's before the edit's.
        callback_on_step_end_tensor_inputs: as in `invert`.
        return_dict: False returns (images,).
        **conditions: what else the edit's network is told, as in `invert`.

    Returns:
        Reconstruction: the edits, (B, C, h, w) their latents, and how the run went.

    Raises:
        TypeError, ValueError: an argument that cannot be used, an inversion whose way back the editor cannot use, a
            network whose attention cannot be shared between rows; the message says what was expected.
        FloatingPointError: latents became non-finite.
    """
    if not isinstance(inversion, Inversion):
        raise TypeError(f"inversion must be what invert() returns, got {type(inversion).__name__}")
    chosen = resolve(method)
    arguments.check_options(guidance_scale, cuda_graph, callback_on_step_end, callback_on_step_end_tensor_inputs)
    check_output_type(output_type)
    _check_fits(chosen, inversion, mask, style)
    plain = following(inversion, pipe, runtime, dtype, None if chosen.rows == 1 else ())
    check_match(plain, inversion, None, prompt)
    rows.check(plain, chosen.control, type(innermost(chosen)).__name__)
    model = plain
    if chosen.rows > 1:
        kind = rows.sided(type(plain), chosen.rows, chosen.control)
        model = kind(pipe, plain.denoiser.runtime.name, plain.denoiser.dtype, precompute=())
    batch = len(inversion)
    with model.session():
        asked = Asked(plain, inversion, prompt, negative_prompt, guidance_scale, style, conditions)
        condition = asked.condition(chosen)
        scale = 1.0 if isinstance(innermost(chosen), FlowEdit) else guidance_scale
        problem = run.problem(model, inversion.schedule, scale, None, batch, kernels, condition, cuda_graph)
        allowed = _mask(plain, chosen, mask, inversion)
        stepper = _stepper(chosen, inversion, problem, guidance_scale, allowed)
        hooks = run.hooks(model, callback_on_step_end, callback_on_step_end_tensor_inputs, False)
        state = {name: x.to(model.device, model.latent_dtype) for name, x in _state(chosen, inversion, style).items()}
        found, stats = run.run(model, problem, stepper, state, condition, hooks, inversion.method, cuda_graph)
        latents = found.state["latents"].chunk(chosen.rows, 1)[-1].contiguous()
        output = (
            latents if output_type == "latent" else present(_decoded(plain, latents, inversion, allowed), output_type)
        )
    partner = found.state.get("partner")
    if partner is not None:
        partner = partner.chunk(chosen.rows, 1)[-1].contiguous()
    return Reconstruction(images=output, latents=latents, stats=stats, partner=partner) if return_dict else (output,)


def _state(editor: Editor, inversion: Inversion, style: Inversion | None) -> State:
    """What the way down starts from, of all rows."""
    own = {"latents": inversion.latents, **{n: x for n, x in inversion.state.items() if n != "path"}}
    if editor.rows == 3:
        return of_all([own, {"latents": style.latents, **style.state}, own])
    return beside(own, editor.rows)


def _stepper(
    editor: Editor, inversion: Inversion, problem: Problem, scale: float, mask: torch.Tensor | None
) -> Stepper:
    """The inversion's way down, with what the editor puts around it."""
    inner = innermost(editor)
    if isinstance(inner, FlowEdit):
        clean = inversion.init_latents.to(problem.device, problem.dtype)
        first = max(1, round(inner.strength * inversion.schedule.num_steps))
        sampler = AlongDifference(problem, clean, (inner.source_guidance, scale), first, inner.draws, inner.seed)
    elif "path" in inversion.state:  # methods.Direct, whose own sampler would put the edit back, too
        sampler = inversion.method.method.sampler(problem, inversion.node)
    else:
        sampler = inversion.method.sampler(problem, inversion.node)
    if not editor.corrected and mask is None:
        return sampler
    path = path_of(inversion, isinstance(inner, FlowEdit)).to(problem.device, problem.dtype)
    small = None
    if mask is not None:
        small = masks.for_latents(mask, *path.shape[-2:]).to(problem.device, problem.dtype)
    return Kept(sampler, problem, path, editor.rows, editor.corrected, small)


def _mask(model: Adapter, editor: Editor, mask: Any, inversion: Inversion) -> torch.Tensor | None:
    """(1 or B, 1, H, W) what may change; None where everything may."""
    if mask is not None:
        return masks.read(mask, len(inversion))
    if not isinstance(editor, Region):
        return None
    factor = getattr(model.pipe, "vae_scale_factor", 1)
    height, width = (side * factor for side in inversion.latents.shape[2:])
    return masks.of_boxes(editor.boxes, height, width)


def _decoded(model: Adapter, latents: torch.Tensor, inversion: Inversion, mask: torch.Tensor | None) -> torch.Tensor:
    pixels = model.decode(latents)
    if mask is None:
        return pixels
    return masks.composed(pixels, model.decode(inversion.init_latents.to(latents)), mask)


def _check_fits(editor: Editor, inversion: Inversion, mask: Any, style: Inversion | None) -> None:
    """Whether the editor can use the way back of the inversion."""
    name, method, inner = type(innermost(editor)).__name__, inversion.method, innermost(editor)
    if inversion.prompt is None:
        raise ValueError("this inversion was made with prompt_embeds; invert with a prompt to edit it by another")
    if inversion.node < inversion.schedule.num_steps:
        raise ValueError(
            f"this inversion stopped at node {inversion.node} of {inversion.schedule.num_steps}; invert to the end"
        )
    if method.text_embeds and editor.rows > 1:
        raise ValueError(
            f"{type(method).__name__} leads back by embeddings tuned to the source alone, and {name} runs source and "
            "edit side by side; edit with method='prompt', or invert by another method"
        )
    if isinstance(inner, FlowEdit) and inversion.schedule.prediction_type != FLOW:
        raise ValueError(
            f"FlowEdit is for rectified flow, and this network predicts {inversion.schedule.prediction_type}"
        )
    if isinstance(editor, Region) and mask is not None:
        raise ValueError("pass mask, or a Region with boxes, not both")
    wanted = "Direct" if editor.corrected else "mask" if mask is not None or isinstance(editor, Region) else None
    if wanted and not isinstance(inner, FlowEdit):  # which goes from image to image
        _check_path(inversion, wanted)
    if (style is not None) != (editor.rows == 3):
        raise ValueError("style goes with method='portrait', which needs the inversion of the image whose style it is")
    if style is not None:
        _check_style(inversion, style)


def _check_path(inversion: Inversion, wanted: str) -> None:
    if path_of(inversion) is None:
        raise ValueError(f"{wanted} needs the latents of every node; invert with save_trajectory=True")
    if inversion.trajectory is not None and len(inversion.trajectory) != inversion.node + 1:
        name = type(inversion.method).__name__
        raise ValueError(f"{wanted} needs the latents of every node, and {name} left some out")


def _check_style(inversion: Inversion, style: Inversion) -> None:
    if not isinstance(style, Inversion):
        raise TypeError(f"style must be what invert() returns, got {type(style).__name__}")
    alike = (
        style.schedule == inversion.schedule
        and style.method == inversion.method
        and style.latents.shape == inversion.latents.shape
        and style.prompt is not None
    )
    if not alike:
        raise ValueError(
            "style must be inverted like the image: same grid, method, size and number of images, with a prompt; got "
            f"{tuple(style.latents.shape)} by {style.method!r}"
        )
