"""What int8 networks are calibrated on: the network's own way from noise to images, in float32.

An inversion walks the same way up, through latents of the same distribution at the same times. But the samples follow
from the pipeline alone, not from an image: an inversion, its way back and every other image use one quantised network.
On the bundled UNet one evaluation is 2.3e-2 off with ranges from here, 1.7e-2 with those of an inversion of one sample
image (means over 10 times of 16 images).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers import DDIMScheduler

from invfast.digests import tensor_digest
from invfast.fingerprint import fingerprint
from invfast.runtimes import Calibration

TEXTS = ("", "a photo of a cat", "a house by the sea", "a portrait of a woman")
STEPS, SEED = 10, 0


Static = Mapping[str, torch.Tensor]


def calibration(
    network: Callable[[], torch.nn.Module],
    scheduler: Any,
    example: Static,
    condition: Callable[[list[str]], Static],
    encoders: Mapping[str, torch.nn.Module | None],
) -> Calibration:
    """Of a network for inputs like these: STEPS times of an image for each of TEXTS.

    Samples that are not finite raise FloatingPointError.

    Args:
        network: makes a private one in float32.
        scheduler: its pipeline's.
        example: what it will be called with.
        condition: the static inputs for texts.
        encoders: of texts, by the names of their parts in the pipeline.

    Raises:
        ValueError: the network takes text, and the pipeline cannot encode it.
    """
    texts = TEXTS if "encoder_hidden_states" in example else ("",) * len(TEXTS)
    missing = [name for name, part in encoders.items() if part is None]
    if missing and any(texts):
        raise ValueError(
            f"int8 is calibrated on texts of its own, and the pipeline has no {' and no '.join(missing)}; load it with "
            "one, or take dtype='float32'"
        )
    modules = {name: part for name, part in encoders.items() if isinstance(part, torch.nn.Module)}
    says = {
        "texts": list(texts),
        "text_encoder": None,
        **{name: fingerprint(part).weights for name, part in modules.items()},
        "steps": STEPS,
        "seed": SEED,
        "shape": list(example["x"].shape[1:]),
        "betas": tensor_digest(scheduler.alphas_cumprod),
        "prediction_type": scheduler.config.get("prediction_type", "epsilon"),
    }
    return Calibration(says, lambda: _samples(network(), _scheduler(scheduler), example, condition(list(texts))))


@torch.inference_mode()
def _samples(
    network: torch.nn.Module, scheduler: DDIMScheduler, example: Static, static: Static
) -> list[dict[str, torch.Tensor]]:
    static = {name: x.float() if x.is_floating_point() else x for name, x in static.items()}
    shape = example["x"].shape[1:]
    seeds = range(SEED, SEED + len(TEXTS))
    x = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    found = []
    for t in scheduler.timesteps:
        for j in range(len(x)):
            rows = {name: value[j : j + 1] for name, value in {"x": x, **static}.items()}
            found.append({**rows, "t": t.to(example["t"].dtype)})
        x = scheduler.step(network(x, t, **static, return_dict=False)[0], t, x).prev_sample
    if not bool(x.isfinite().all()):
        raise FloatingPointError(
            "the images int8 is calibrated on became non-finite; check the weights for non-finite values, or take "
            "dtype='float32'"
        )
    return found


def _scheduler(own: Any) -> DDIMScheduler:
    """DDIM down the pipeline's betas, nothing clipped."""
    scheduler = DDIMScheduler.from_config(own.config, clip_sample=False, thresholding=False)
    scheduler.alphas_cumprod = own.alphas_cumprod.detach().to("cpu", torch.float32)
    scheduler.set_timesteps(STEPS)
    return scheduler
