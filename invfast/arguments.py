"""What a caller passes beside the image, checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from PIL import Image

Text = str | Sequence[str]


def replacements(new: Any, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What a callback returned, as far as it names the state; checked, for a wrong tensor would only fail later."""
    if new is not None and not isinstance(new, Mapping):
        raise TypeError(f"callback_on_step_end must return a dict of tensors or None, got {type(new).__name__}")
    found = {name: value for name, value in (new or {}).items() if name in state}
    for name, value in found.items():
        old = state[name]
        if not isinstance(value, torch.Tensor) or (value.shape, value.dtype, value.device) != (
            old.shape,
            old.dtype,
            old.device,
        ):
            got = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
            raise ValueError(
                f"callback_on_step_end returned {got} for {name!r}; expected {old.dtype} {tuple(old.shape)}"
            )
    return found


def check_options(
    guidance_scale: float, cuda_graph: bool | None, callback: Callable | None, names: Sequence[str]
) -> None:
    check_guidance(guidance_scale)
    if cuda_graph not in (None, True, False):
        raise TypeError(f"cuda_graph must be None, True or False, got {cuda_graph!r}")
    if callback is not None and not callable(callback):
        raise TypeError(f"callback_on_step_end must be callable, got {callback!r}")
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"callback_on_step_end_tensor_inputs must be a list of names, got {names!r}")


def check_guidance(scale: float) -> None:
    if not isinstance(scale, Real) or not math.isfinite(scale) or scale < 0:
        raise ValueError(f"guidance_scale must be a finite number of at least 0, got {scale!r}")


def device_of(name: str | None) -> torch.device:
    """A device of this machine by name; None is cuda where there is one, else cpu.

    Raises:
        ValueError: there is no such device here.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        here = ["cpu", *(f"cuda:{j}" for j in range(torch.cuda.device_count()))]
        here += ["mps"] if torch.backends.mps.is_available() else []
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {name!r} cannot be used: {reason}; here there is {', '.join(here)}") from error
    return torch.device(name)


def check_generator(generator: Any) -> None:
    every = generator if isinstance(generator, list) else [] if generator is None else [generator]
    if not all(isinstance(each, torch.Generator) for each in every):
        raise TypeError(f"generator must be a torch.Generator or a list of them, got {generator!r}")


def texts(
    batch: int,
    prompt: Text | None,
    negative_prompt: Text | None,
    prompt_embeds: torch.Tensor | None,
    negative_prompt_embeds: torch.Tensor | None,
) -> tuple[list[str] | None, list[str] | None]:
    """(prompts, negative prompts), one an image; None where there are none."""
    if prompt_embeds is not None and prompt not in (None, ""):
        raise ValueError("pass prompt or prompt_embeds, not both")
    if negative_prompt_embeds is not None and negative_prompt is not None:
        raise ValueError("pass negative_prompt or negative_prompt_embeds, not both")
    positive = None if prompt_embeds is not None else each(prompt, batch, "prompt")
    negative = None if negative_prompt is None else each(negative_prompt, batch, "negative_prompt")
    return positive, negative


def each(text: Text | None, batch: int, name: str) -> list[str]:
    """One text an image."""
    texts = [text] * batch if isinstance(text, str) else list(text) if isinstance(text, Sequence) else [text]
    if not all(isinstance(one, str) for one in texts):
        raise TypeError(f"{name} must be a text or a list of texts, got {text!r}")
    if len(texts) != batch:
        raise ValueError(f"{name} has {len(texts)} texts for {batch} images; pass one for all, or one an image")
    return texts


def pair(name: str, value: Any) -> list[int]:
    """Two integers, a size or a corner."""
    numbers = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else []
    if len(numbers) != 2 or not all(isinstance(n, Integral) and not isinstance(n, bool) and n >= 0 for n in numbers):
        raise ValueError(f"{name} must be two integers of at least 0, (height, width) or (top, left), got {value!r}")
    return [int(n) for n in numbers]


def check_images(name: str, value: Any) -> None:
    """Raises TypeError where it is neither an image that pipelines of diffusers take, nor a list of them."""
    every = value if isinstance(value, (list, tuple)) else [value]
    strange = [type(one).__name__ for one in every if not isinstance(one, (Image.Image, np.ndarray, torch.Tensor))]
    if strange or not every:
        got = strange[0] if strange else "an empty list"
        raise TypeError(f"{name} must be an image (PIL, numpy array or tensor) or a list of them, got {got}")
