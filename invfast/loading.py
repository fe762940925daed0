"""Pipelines by name: the bundled one, one in a folder, or one of the hub; from safetensors alone."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from invfast import demo
from invfast.arguments import device_of
from invfast.digests import file_digest


def load(model: str, device: str | None) -> Any:
    """The pipeline of a name, on a device; only a hub id may touch the network.

    Args:
        model: "" for the bundled one, a folder of a diffusers pipeline, or a hub id.
        device: None is cuda where there is one, else cpu.

    Raises:
        OSError: no such pipeline, or weights that are no safetensors; says how to get them.
        ValueError: no such device.
    """
    import diffusers

    place = device_of(device)  # before anything is read
    local = Path(model).exists()
    pipe = _safely(diffusers.DiffusionPipeline, model, local) if model else demo.load_pipeline()
    return pipe.to(place)


def digest(model: str) -> str | None:
    """SHA-256 over the files of a bundled pipeline or of one in a folder; None for a hub id, which is known by name."""
    root = Path(model) if model else demo.ROOT / "emoji64"
    if not root.is_dir():
        return None
    sha = hashlib.sha256()
    for path in sorted(each for each in root.rglob("*") if each.suffix in (".json", ".safetensors", ".txt")):
        sha.update(f"{path.relative_to(root).as_posix()}|{file_digest(path)}|".encode())
    return sha.hexdigest()


def _safely(cls: Any, model: str, local: bool) -> Any:
    """The pipeline from safetensors alone: any other kind of weights would be unpickled.

    Raises:
        OSError: weights are missing in that format; says how to get them.
    """
    try:
        for index in Path(model).rglob("*.safetensors.index.json"):
            shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
            others = sorted({name for name in shards if not name.endswith(".safetensors")})
            if others:
                raise OSError(f"{str(index)!r} names {others[0]!r} among its safetensors")
        return cls.from_pretrained(model, local_files_only=local, use_safetensors=True)
    except OSError as error:
        if "safetensors" not in str(error):
            raise
        raise OSError(
            f"{error}\nWeights are read as safetensors only, never unpickled (.bin, .pt, .ckpt): where you trust them, "
            "load them once with diffusers and write them with pipe.save_pretrained(folder)"
        ) from error
