"""edit: what an inversion is for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from invfast.cli import terminal
from invfast.cli.base import (
    Config,
    Device,
    Dtype,
    Json,
    Runtime,
    Source,
    guarded,
    load_model_of,
    result,
    stop_if_asked,
    suffix_of,
    write,
)


@guarded
def edit(
    file: Annotated[Path, typer.Argument(help="What `invfast invert` saved.", show_default=False)],
    prompt: Annotated[str, typer.Option(help="What the image is to show.", show_default=False)],
    output: Annotated[Path, typer.Option("-o", "--output", help="The picture to write (.png).")],
    model: Source = None,
    config: Config = "",
    method: Annotated[
        str, typer.Option(help="prompt, prompt_to_prompt, masactrl, direct, flow_edit (rectified flow).")
    ] = "prompt",
    guidance: Annotated[float, typer.Option(help="Guidance scale of the edit.")] = 7.5,
    negative_prompt: Annotated[str | None, typer.Option(help="What it is not to show.")] = None,
    mask: Annotated[
        Path | None, typer.Option(help="Picture, white where the image may change; wants `invert --trajectory`.")
    ] = None,
    dtype: Dtype = None,
    device: Device = None,
    runtime: Runtime = "auto",
    as_json: Json = False,
) -> None:
    """Regenerate an image under another prompt: invfast edit noise/cat.safetensors --prompt "photo dog" -o dog.png"""
    import invfast
    from invfast import editing
    from invfast.figures import encode

    suffix = suffix_of(output, (".png",))
    chosen, white = editing.resolve(method), None if mask is None else editing.read_mask(mask, 1)
    inversion = invfast.Inversion.load(file)
    pipe = load_model_of({file: inversion}, model, device, config)
    with terminal.progress(pipe, "editing"):
        found = invfast.edit(
            pipe,
            inversion,
            prompt,
            method=chosen,
            guidance_scale=guidance,
            negative_prompt=negative_prompt,
            mask=white,
            dtype=dtype,
            runtime=runtime,
            callback_on_step_end=stop_if_asked,
        )
    write(output, encode(found.images[0], suffix))
    row = {"command": "edit", "image": str(output), "method": method, "seconds": round(found.stats.seconds, 3)}
    result(row, [str(output)], as_json)
