"""Pipelines by name: a bundled one, one in a folder or a single file, or one of the hub; from safetensors alone.

No code comes with a model: a folder whose model_index.json asks for classes that are not diffusers' or transformers' is
refused.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from invfast import demo
from invfast.arguments import device_of
from invfast.digests import file_digest
from invfast.provenance import BUNDLED, HUB_ID

INDEX = "model_index.json"
PICKLES = (".bin", ".ckpt", ".pkl", ".pt", ".pth")
KINDS = "a folder that pipe.save_pretrained() wrote, a .safetensors checkpoint, or a hub id, as org/name"
UNPICKLED = "Weights are read as safetensors only, never unpickled"
TRUSTED = "where you trust them, load them once with diffusers and write them with pipe.save_pretrained(folder)"


def load(model: str, device: str | None, config: str = "") -> Any:
    """The pipeline of a name, on a device; only a hub id may touch the network.

    Args:
        model: "" for the bundled one, "invfast:NAME" for another of them (`demo.PIPELINES`), a folder of a diffusers
            pipeline, a single .safetensors checkpoint, or a hub id.
        device: None is cuda where there is one, else cpu.
        config: of a single file: a folder or hub id of a diffusers pipeline of its kind, for configs and tokenizers;
            "" is the one that diffusers knows for it, where the hub's cache has it.

    Raises:
        OSError: no such pipeline, or weights that are no safetensors; says how to get them.
        ValueError: a pipeline that asks for code of its own, or a checkpoint that is not one of its configs, or
            no such device.
    """
    place = device_of(device)  # before anything is read
    single = Path(model).is_file() or Path(model).suffix.lower() in (".safetensors", *PICKLES)
    if config and not single:
        raise ValueError(f"config {config!r} is for a model that is a single .safetensors file, and {model!r} is none")
    return _opened(model, config, single).to(place)


def named_by(name: str | None, file: str | os.PathLike[str]) -> str:
    """The model that an inversion file names, to `load`: nothing is downloaded for it, whatever it says.

    Args:
        name: its provenance's "model"; None, as in files of old, is the bundled one.
        file: the file, for errors.

    Raises:
        OSError: it is not here any more, or not in the hub's cache. ValueError: no such name; both say what to do.
    """
    if name is None or name.removeprefix(BUNDLED) in demo.PIPELINES:
        return name or ""
    said, other = f"{name!r}, which inversion file {str(file)!r} names,", "pass --model with a folder or hub id"
    if os.path.isabs(name) and name.isprintable() and name[:2] not in ("//", "\\\\"):
        if not os.path.exists(name):
            raise FileNotFoundError(f"model {said} does not exist here any more; {other}")
        return name
    if not HUB_ID.fullmatch(name) or Path(name).exists():
        raise ValueError(f"model {said} is no absolute path or hub id, or is also a folder here; {other}")
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(name, local_files_only=True)
    except OSError as error:
        raise FileNotFoundError(
            f"model {said} is not in the hub's cache, and a file's word is not enough to download it; pass --model "
            f"{name} to do so, or --model FOLDER"
        ) from error


def digest(model: str, config: str = "") -> str | None:
    """SHA-256 over the files of a model that lies on this machine; None for a hub id, which is known by name."""
    name = model.removeprefix(BUNDLED) or "emoji64"
    root = demo.ROOT / name if not model or model.startswith(BUNDLED) else Path(model)
    every = sorted(each for each in root.rglob("*") if each.suffix in (".json", ".safetensors", ".txt"))
    if root.is_file():
        every = [root]
    elif not root.is_dir():
        return None
    sha = hashlib.sha256()
    for path in every:
        sha.update(f"{path.relative_to(root).as_posix()}|{file_digest(path)}|".encode())
    if config:
        sha.update(f"{digest(config) or config}|".encode())
    return sha.hexdigest()


def _opened(model: str, config: str, single: bool) -> Any:
    import diffusers

    if not model:
        return demo.load_pipeline()
    if model.startswith(BUNDLED):
        return _bundled(model.removeprefix(BUNDLED))()
    if single:
        return _of_single_file(Path(model), config)
    folder = Path(model) if Path(model).is_dir() else _of_hub(model)
    pipeline_class(folder)
    with _safetensors_alone(folder):
        pipe = diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    pipe.register_to_config(_name_or_path=model)
    return pipe


def _bundled(name: str) -> Callable[[], Any]:
    if name not in demo.PIPELINES:
        known = ", ".join(f"{BUNDLED}{each}" for each in demo.PIPELINES)
        raise ValueError(f"unknown bundled model '{BUNDLED}{name}'; expected one of {known}")
    return demo.PIPELINES[name]


def pipeline_class(folder: Path) -> Any:
    """The class that a folder's model_index.json names, nothing in which is code of its own.

    Raises:
        FileNotFoundError: there is none. ValueError: it cannot be read, or asks for other classes than diffusers' and
            transformers'.
    """
    import diffusers

    path = folder / INDEX
    if not path.is_file():
        single = next((f"; or pass {str(each)!r} itself" for each in sorted(folder.glob("*.safetensors"))), "")
        raise FileNotFoundError(
            f"model folder {str(folder)!r} has no {INDEX}; expected {KINDS}, all of it and no part as unet{single}"
        )
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        name = index["_class_name"]
        parts = {key: value for key, value in index.items() if isinstance(value, list) and key != "_ignore_files"}
    except (AttributeError, KeyError, OSError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"{str(path)!r} is no index of a diffusers pipeline: {error!r}; save it again") from error
    code = [folder / "None.py", *(folder / part / f"{value[0]}.py" for part, value in parts.items() if value)]
    strange = [value for value in parts.values() if not (value and _is_library(value[0]))]
    strange += [str(each) for each in code if each.is_file()]  # some versions of diffusers would run it
    if strange or not isinstance(name, str):
        raise ValueError(
            f"{str(path)!r} asks for code of its own ({[*strange, name][0]}), which is not run; only classes of "
            "diffusers and transformers are: load it in Python, where you trust it, and pass the pipeline to invert()"
        )
    found = getattr(diffusers, name, None)
    if not (isinstance(found, type) and issubclass(found, diffusers.DiffusionPipeline)):
        raise ValueError(
            f"{str(path)!r} names the pipeline {name!r}, which diffusers {diffusers.__version__} does not have; "
            "another version of diffusers may"
        )
    return found


def _is_library(name: Any) -> bool:
    from diffusers import pipelines

    known = name in (None, "diffusers", "transformers")
    return known or (isinstance(name, str) and name.isidentifier() and hasattr(pipelines, name))


def _of_single_file(path: Path, config: str) -> Any:
    """The pipeline of one checkpoint; diffusers converts it.

    Raises:
        OSError: it is not there, a pickle, or its configs are not here. ValueError: it cannot be converted.
    """
    if path.suffix.lower() in PICKLES:
        raise OSError(
            f"checkpoint {str(path)!r} is a pickle, which runs code when it is read; take its .safetensors, or "
            f"{TRUSTED}"
        )
    if path.suffix.lower() != ".safetensors":
        raise ValueError(f"model {str(path)!r} is a file that is no .safetensors checkpoint; expected {KINDS}")
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {str(path)!r} does not exist; expected {KINDS}")
    root = _configs(path, config)
    cls = pipeline_class(root)
    if not hasattr(cls, "from_single_file"):
        raise ValueError(f"a {cls.__name__} cannot be read from a single file; pass its folder as the model")
    try:
        with _safetensors_alone(root):
            _check_no_pickles(root)
            pipe = cls.from_single_file(str(path), config=str(root), local_files_only=True)
    except OSError:
        raise
    except Exception as error:  # diffusers converts by names and shapes and stumbles in any way
        raise ValueError(
            f"checkpoint {str(path)!r} cannot be read as the {cls.__name__} that {str(root)!r} describes: {error}; "
            "expected a whole checkpoint (no LoRA, no VAE alone) of these configs, others are given as config"
        ) from error
    pipe.register_to_config(_name_or_path=str(path))
    return pipe


def _check_no_pickles(root: Path) -> None:
    """Parts that a checkpoint lacks are read from the folder of its configs, however diffusers finds them there."""
    for part in sorted(each for each in root.iterdir() if each.is_dir() and each.name != "safety_checker"):
        pickled = [each for each in part.iterdir() if each.suffix in PICKLES]
        if pickled and not any(part.glob("*.safetensors")):
            raise OSError(f"{str(pickled[0])!r} is no safetensors file")


def _configs(path: Path, config: str) -> Path:
    """The folder of a single file's configs; only a hub id that was asked for may touch the network."""
    from huggingface_hub import snapshot_download

    if Path(config).is_dir() and config:
        return Path(config)
    if config and not HUB_ID.fullmatch(config):
        raise FileNotFoundError(
            f"config {config!r} does not exist; expected a folder of a diffusers pipeline, or a hub id"
        )
    wanted = config or _kind(path)
    try:
        # diffusers' own search goes to the network where the cache has nothing, whatever local_files_only says
        patterns = ["**/*.json", "*.json", "*.txt", "**/*.txt", "**/*.model"]
        return Path(snapshot_download(wanted, local_files_only=not config, allow_patterns=patterns))
    except OSError as error:
        raise FileNotFoundError(
            f"checkpoint {str(path)!r} holds weights alone, and the configs and tokenizer of {wanted!r} are not in "
            "the hub's cache; pass --config FOLDER of a diffusers pipeline of its kind, or --config with a hub id to "
            "fetch them"
        ) from error


def _kind(path: Path) -> str:
    """The hub id whose configs diffusers has for a checkpoint, by its tensors' names."""
    from diffusers.loaders import single_file_utils as utils

    try:
        return utils.fetch_diffusers_config(utils.load_single_file_checkpoint(str(path)))[
            "pretrained_model_name_or_path"
        ]
    except Exception as error:
        raise ValueError(
            f"checkpoint {str(path)!r} cannot be read: {error}; expected a .safetensors checkpoint"
        ) from error


def _of_hub(model: str) -> Path:
    """The folder of a hub id in the hub's cache, fetched where that lacks it.

    Raises:
        OSError: it cannot be had; says what was looked for, where, and what to do.
    """
    import diffusers
    from huggingface_hub.constants import HF_HUB_CACHE

    if not HUB_ID.fullmatch(model):
        raise FileNotFoundError(f"model {model!r} does not exist; expected {KINDS}")
    try:
        with _safetensors_alone():
            return Path(diffusers.DiffusionPipeline.download(model, use_safetensors=True))
    except (PermissionError, NotADirectoryError, FileExistsError) as error:
        raise OSError(
            f"the hub's cache {HF_HUB_CACHE!r} cannot be written to ({error}); name another in HF_HOME"
        ) from error
    except OSError as error:
        if UNPICKLED in str(error):
            raise
        reason = str(error).strip().partition("\n")[0]
        raise OSError(
            f"model {model!r} is no folder here and cannot be had from the hub or its cache {HF_HUB_CACHE!r} "
            f"({reason}); expected {KINDS}; `hf download {model}` fetches one where there is a network"
        ) from error


@contextmanager
def _safetensors_alone(folder: Path | None = None) -> Iterator[None]:
    """Refuses shards that would be unpickled; what fails for lack of safetensors says how to get them.

    Raises:
        OSError: weights are missing as safetensors.
    """
    try:
        for index in () if folder is None else folder.rglob("*.safetensors.index.json"):
            shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
            others = sorted({name for name in shards if not name.endswith(".safetensors")})
            if others:
                raise OSError(f"{str(index)!r} names {others[0]!r} among its safetensors")
        yield
    except OSError as error:
        if "safetensors" not in str(error) or UNPICKLED in str(error):
            raise
        raise OSError(f"{error}\n{UNPICKLED} (.bin, .pt, .ckpt): {TRUSTED}") from error
