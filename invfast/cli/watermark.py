"""watermark key, embed, detect: keys in the noise that images begin with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from invfast.cli import terminal
from invfast.cli.base import (
    Config,
    Device,
    Dtype,
    Json,
    Model,
    Prompts,
    Runtime,
    Steps,
    check_folder,
    guarded,
    load_model,
    one_each,
    result,
    stop_if_asked,
    write,
)

if TYPE_CHECKING:
    from invfast.watermark import Key, Score

watermark = typer.Typer(help="Watermarks in the noise that images begin with.", no_args_is_help=True)


@watermark.command()
@guarded
def key(
    output: Annotated[Path, typer.Option("-o", "--output", help="The key's file to write (.json); it is a secret.")],
    kind: Annotated[str, typer.Option(help="tree_ring, gaussian_shading or ring_id.")] = "gaussian_shading",
    shape: Annotated[str, typer.Option(help="Of the latents, as 4,64,64. (default: the model's)")] = "",
    model: Model = "",
    config: Config = "",
    message: Annotated[str | None, typer.Option(help="Zeros and ones it says. (default: random ones)")] = None,
    copies: Annotated[str, typer.Option(help="gaussian_shading: of each bit, along each side. (default: 1,8,8)")] = "",
    pattern: Annotated[str | None, typer.Option(help="tree_ring: ring, rand or zeros. (default: ring)")] = None,
    radius: Annotated[int | None, typer.Option(help="tree_ring, ring_id: frequencies. (default: by the shape)")] = None,
    as_json: Json = False,
) -> None:
    """Make a key: invfast watermark key --kind tree_ring -o key.json"""
    from invfast.watermark import KINDS, save_key, shape_of

    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}; expected one of {', '.join(KINDS)}")
    if output.suffix.lower() != ".json":
        raise ValueError(f"a key is written as JSON; {str(output)!r} does not end in .json")
    if output.exists():
        raise ValueError(f"{str(output)!r} exists; a key that is lost finds no image again, so it is not replaced")
    said = {"message": message, "pattern": pattern, "radius": radius, "copies": _sides("copies", copies)}
    said = {name: value for name, value in said.items() if value is not None}
    _check_known(KINDS[kind], said)
    sides = _sides("shape", shape) or shape_of(load_model(model, "cpu", config))
    made = KINDS[kind].new(sides, **said)
    output.parent.mkdir(parents=True, exist_ok=True)
    save_key(made, output)
    row = {"command": "watermark key", "file": str(output), "kind": made.kind, "shape": list(made.shape)}
    result({**row, "bits": len(getattr(made, "message", ""))}, [str(output)], as_json)


@watermark.command()
@guarded
def embed(
    file: Annotated[Path, typer.Argument(help="A key, what `invfast watermark key` wrote.", show_default=False)],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder for images, or a file for latents alone (.safetensors).")
    ],
    n: Annotated[int, typer.Option("-n", min=1, help="How many images.")] = 1,
    prompt: Annotated[str, typer.Option(help="What they show.")] = "",
    seed: Annotated[int, typer.Option(help="Of the first image; the next has the next.")] = 0,
    model: Model = "",
    config: Config = "",
    steps: Steps = 50,
    guidance: Annotated[float, typer.Option(help="Guidance scale.")] = 7.5,
    dtype: Dtype = None,
    device: Device = None,
    runtime: Runtime = "auto",
    as_json: Json = False,
) -> None:
    """Make images with a watermark: invfast watermark embed key.json -n 4 --prompt "photo cat" -o out"""
    import torch
    from safetensors.torch import save

    from invfast.figures import encode
    from invfast.watermark import load_key, sample

    if output.suffix.lower() not in ("", ".safetensors"):
        raise ValueError(f"latents end in .safetensors and a folder of images has no ending; got {str(output)!r}")
    if not output.suffix:
        check_folder(output)
    latents = load_key(file).embed(n, [torch.Generator().manual_seed(seed + j) for j in range(n)])
    names = [str(output)]
    if output.suffix:
        write(output, save({"latents": latents}))
    else:
        targets = [output / f"{seed + j}.png" for j in range(n)]
        names = [str(target) for target in targets]
        pipe = load_model(model, device, config)
        with terminal.progress(pipe, "drawing", n):
            for j, target in enumerate(targets):
                how = {"num_inference_steps": steps, "guidance_scale": guidance, "dtype": dtype, "runtime": runtime}
                found = sample(pipe, latents[j : j + 1], prompt, callback_on_step_end=stop_if_asked, **how)
                write(target, encode(found.images[0], ".png"))
    result({"command": "watermark embed", "files": names}, names, as_json)


@watermark.command()
@guarded
def detect(
    images: Annotated[
        list[Path],
        typer.Argument(help="Images, or what `invfast invert` saved.", show_default=False),
    ],
    keys: Annotated[list[Path], typer.Option("--key", help="A key's file; several to find out whose it is.")],
    model: Model = "",
    config: Config = "",
    method: Annotated[str, typer.Option(help="How they are inverted, as for `invfast invert`.")] = "auto",
    steps: Steps = 50,
    prompt: Prompts = ("",),
    fpr: Annotated[float, typer.Option(help="Share of images without a watermark that may be taken for one.")] = 0.01,
    batch: Annotated[int, typer.Option(min=1, help="Images run at once.")] = 1,
    dtype: Dtype = None,
    device: Device = None,
    runtime: Runtime = "auto",
    as_json: Json = False,
) -> None:
    """Look for keys in images: invfast watermark detect out/*.png --key key.json"""
    from invfast.methods.spelling import parse
    from invfast.watermark import load_key

    chosen, prompts, loaded = parse(method), one_each(prompt, images), [load_key(path) for path in keys]
    if not 0 < fpr < 1:
        raise ValueError(f"fpr must lie between 0 and 1, got {fpr}")
    saved = [path.suffix.lower() == ".safetensors" for path in images]
    if any(saved) and not all(saved):
        raise ValueError("images and inversions together; ask for them one after the other")
    how = {"method": chosen, "num_inference_steps": steps, "dtype": dtype, "runtime": runtime}
    if saved[0]:
        found = _of_inversions(images, loaded)
    else:
        found = _of_images(images, loaded, prompts, batch, (model, device, config), how)
    rows = [_row(path, keys, each, fpr) for path, each in zip(images, found, strict=True)]
    result({"command": "watermark detect", "fpr": fpr, "images": rows}, [_line(row) for row in rows], as_json)


def _of_inversions(files: list[Path], keys: list[Key]) -> Iterator[Score]:
    from invfast.inversion import Inversion
    from invfast.watermark import score

    for file in files:
        (found,) = score(Inversion.load(file)[0], keys)
        yield found


def _of_images(
    images: list[Path],
    keys: list[Key],
    prompts: list[str],
    batch: int,
    source: tuple[str, str | None, str],
    how: dict[str, Any],
) -> Iterator[Score]:
    from invfast.images import load
    from invfast.watermark import detect

    for path in images:
        load(path)  # bad files are known before the model is loaded
    pipe = load_model(*source)
    starts = range(0, len(images), batch)
    with terminal.progress(pipe, "inverting", len(starts)):
        for start in starts:
            part = slice(start, start + batch)
            given = [load(path) for path in images[part]]
            yield from detect(pipe, given, keys, prompts[part], callback_on_step_end=stop_if_asked, **how).scores


def _row(path: Path, keys: list[Path], score: Score, fpr: float) -> dict[str, Any]:
    own = {"image": str(path), "found": score.p_value <= fpr}
    return {**own, **score.as_dict(), "key": str(keys[score.key])}


def _line(row: dict[str, Any]) -> str:
    verdict = f"p = {row['p_value']:.1e}"
    bits = "" if row["bit_accuracy"] is None else f", {row['bit_accuracy']:.0%} of {len(row['bits'])} bits"
    return f"{row['image']}: {row['key'] if row['found'] else 'nothing found'} ({verdict}{bits})"


def _check_known(cls: type[Key], said: dict[str, Any]) -> None:
    import inspect

    strange = sorted(said.keys() - set(inspect.signature(cls.new).parameters))
    if strange:
        raise ValueError(f"a {cls.kind} key has no --{strange[0]}")


def _sides(name: str, text: str) -> tuple[int, ...] | None:
    """Three integers between commas, None of nothing."""
    try:
        return tuple(int(each) for each in text.split(",")) if text else None
    except ValueError:
        raise ValueError(f"{name} must be three integers, as 4,64,64, got {text!r}") from None
