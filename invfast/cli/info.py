"""info: what a file holds, without a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from invfast.cli.base import Json, guarded, result

Files = Annotated[
    list[Path],
    typer.Argument(help="Inversions (.safetensors), keys (.json), images, or folders of `batch`.", show_default=False),
]


@guarded
def info(files: Files, as_json: Json = False) -> None:
    """What a file holds: invfast info noise/cat.safetensors"""
    rows = [{"file": str(path), **_of(path)} for path in files]
    lines = []
    for row in rows:
        lines += [row["file"], *(f"  {name}: {value}" for name, value in row.items() if name != "file")]
    result({"command": "info", "files": rows}, lines, as_json)


def _of(path: Path) -> dict[str, Any]:
    from invfast.images import ENDINGS

    if not path.exists():
        raise FileNotFoundError(f"{str(path)!r} does not exist")
    if path.is_dir():
        return _of_batch(path)
    kinds = {".safetensors": _of_inversion, ".json": _of_key, **dict.fromkeys(ENDINGS, _of_image)}
    if path.suffix.lower() not in kinds:
        raise ValueError(f"{str(path)!r} is none of what invfast writes or reads: expected {', '.join(kinds)}")
    return kinds[path.suffix.lower()](path)


def _of_inversion(path: Path) -> dict[str, Any]:
    from invfast import Inversion

    found = Inversion.load(path)
    stats, made = found.stats, found.provenance
    return {
        "kind": "inversion",
        "latents": list(found.latents.shape),
        "method": repr(found.method),
        "model": made.get("model"),
        "pipeline": made.get("pipeline"),
        "prompt": found.prompt,
        "negative_prompt": found.negative_prompt,
        "guidance": found.guidance_scale,
        "steps": found.schedule.num_steps,
        "node": found.node,
        "evaluations": list(stats.evaluations),
        "seconds": round(stats.seconds, 3),
        "runtime": stats.runtime,
        "dtype": str(stats.dtype).removeprefix("torch."),
        "residual": None if stats.residual is None else float(stats.residual.max()),
        "reached": None if stats.reached is None else [bool(each) for each in stats.reached],
        "trajectory": found.trajectory is not None,
        "versions": {name: made.get(name) for name in ("invfast", "torch", "diffusers")},
    }


def _of_key(path: Path) -> dict[str, Any]:
    from invfast.watermark import fingerprint_of, load_key

    key = load_key(path)
    bits = len(getattr(key, "message", ""))
    return {"kind": f"key, {key.kind}", "latents": list(key.shape), "bits": bits, "fingerprint": fingerprint_of(key)}


def _of_image(path: Path) -> dict[str, Any]:
    from invfast.images import load

    picture = load(path)
    return {"kind": "image", "width": picture.width, "height": picture.height}


def _of_batch(path: Path) -> dict[str, Any]:
    from invfast import batch

    found = batch.open(path)
    return {"kind": "batch", "images": len(found.rows), "done": len(found), "failed": found.errors}
