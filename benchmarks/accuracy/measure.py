"""One case to figures: inverted, brought back, compared; medians over the images of each kind."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.accuracy.cases import Case
from benchmarks.accuracy.pictures import PLAIN, Pictures
from invfast import Inversion, Schedule, adapters, images, invert, metrics, reconstruct
from invfast.methods import DDIM

BATCH = 33
DRAWN = 2_410_000
LAMBDAS = [j / 6 for j in range(7)]
Figures = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Encoded:
    """Pictures as latents x_0 (B, C, h, w), and what the VAE alone makes of them; drawn pictures have no such thing."""

    prompts: list[str]
    kinds: list[str]
    x: torch.Tensor | None = None
    original: torch.Tensor | None = None
    floor: torch.Tensor | None = None
    quality: Figures = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.prompts)

    def part(self, start: int) -> Encoded:
        """The next batch."""
        cut = slice(start, start + BATCH)
        tensors = {name: None if (v := getattr(self, name)) is None else v[cut] for name in ("x", "original", "floor")}
        quality = {name: values[cut] for name, values in self.quality.items()}
        return Encoded(self.prompts[cut], self.kinds[cut], **tensors, quality=quality)


def encode(pipe: Any, pictures: Pictures) -> Encoded:
    """Pictures for the cases of one model."""
    if pictures.images is None:
        return Encoded(pictures.prompts, pictures.kinds)
    model = adapters.resolve(pipe)(pipe)
    x = model.encode(pictures.images, None, None)
    floor = model.decode(x)
    original = images.to_pixels(pictures.images, 1).to(floor) / 2 + 0.5
    quality = {"vae_psnr": metrics.psnr(floor, original), "vae_ssim": metrics.ssim(floor, original)}
    return Encoded(pictures.prompts, pictures.kinds, x, original, floor, quality)


def measure(pipe: Any, case: Case, pictures: Encoded) -> dict[str, Any]:
    """The figures of a case, plain values: "figures" by kind of image, "seconds" an image, "waste".

    A run whose latents become non-finite is a result too: {"failed": message}.
    """
    parts, seconds, asked, ran = [], 0.0, 0, 0
    try:
        with warnings.catch_warnings():
            # Half precision on a CPU and inversion under guidance warn; both are what is measured here.
            warnings.simplefilter("ignore", UserWarning)
            for start in range(0, len(pictures), BATCH):
                figures, stats = MEASURES.get(case.group, reconstruction)(pipe, case, pictures.part(start))
                parts.append(figures)
                seconds += stats.seconds
                asked += sum(stats.evaluations)
                ran += stats.samples
    except FloatingPointError as error:
        return {"failed": str(error)}
    figures = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    branches = 2 if case.guidance > 1 else 1
    return {
        "figures": by_kind(figures, pictures.kinds),
        "seconds": _short(seconds / len(pictures)),
        "waste": _short(ran / (asked * branches) - 1),
    }


def reconstruction(pipe: Any, case: Case, pictures: Encoded) -> tuple[Figures, Any]:
    """There and back again, against the original latents, the VAE round trip and the original images."""
    inversion, latents, middle = there_and_back(pipe, case, pictures.x, pictures.prompts)
    rebuilt = adapters.resolve(pipe)(pipe).decode(latents)
    on_the_way = inversion.trajectory[-1 - (case.steps - case.steps // 2)].to(middle)
    figures = {
        **_noise(inversion.latents),
        **_latents(inversion, latents, case.steps),
        "midpoint": _error(middle, on_the_way),
        "psnr_to_vae": metrics.psnr(rebuilt, pictures.floor),
        "psnr": metrics.psnr(rebuilt, pictures.original),
        "ssim": metrics.ssim(rebuilt, pictures.original),
        **pictures.quality,
    }
    exact = figures["vae_psnr"].isinf() & figures["psnr"].isinf()
    figures["below_vae"] = torch.where(exact, 0.0, figures["vae_psnr"] - figures["psnr"])
    return figures, inversion.stats


def recovery(pipe: Any, case: Case, pictures: Encoded) -> tuple[Figures, Any]:
    """The noise that DDIM sampling drew an image from, against the noise that is found."""
    noise, x = drawn(pipe, case, pictures)
    inversion, latents, _ = there_and_back(pipe, case, x, pictures.prompts)
    found = _noise(inversion.latents) | _latents(inversion, latents, case.steps)
    return {**found, "noise_error": _error(inversion.latents, noise)}, inversion.stats


def interpolation(pipe: Any, case: Case, pictures: Encoded) -> tuple[Figures, Any]:
    """Along the great circle from an image's own noise to its inversion: what is sampled there, against the image.

    If the inversion were the noise, the way would have no length. Staniszewski et al., arXiv 2410.23530.
    """
    noise, x = drawn(pipe, case, pictures)
    inversion = _inverted(pipe, case, x, pictures.prompts)
    model, figures = adapters.resolve(pipe)(pipe), {"noise_error": _error(inversion.latents, noise)}
    own = model.decode(x)
    for j, weight in enumerate(LAMBDAS):
        between = slerp(noise, inversion.latents, weight)
        latents = _sampled(pipe, between, case.steps, pictures.prompts)
        figures[f"latent_psnr_{j}"] = metrics.latent_psnr(latents, x)
        figures[f"image_psnr_{j}"] = metrics.psnr(model.decode(latents), own)
        figures[f"std_{j}"] = between.std((1, 2, 3))
    return figures, inversion.stats


MEASURES: dict[str, Callable[[Any, Case, Encoded], tuple[Figures, Any]]] = {
    "generated": recovery,
    "interpolation": interpolation,
}


def drawn(pipe: Any, case: Case, pictures: Encoded) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise and what DDIM sampling makes of it on the case's grid, (B, C, h, w) each.

    Its seeds, DRAWN and on, are none that a method draws with: it would be handed what it is to find.
    """
    shape = pipe.unet.config.in_channels, pipe.unet.config.sample_size, pipe.unet.config.sample_size
    each = [torch.randn(shape, generator=torch.Generator().manual_seed(DRAWN + j)) for j in range(len(pictures))]
    noise = torch.stack(each)
    return noise, _sampled(pipe, noise, case.steps, pictures.prompts)


def slerp(a: torch.Tensor, b: torch.Tensor, weight: float) -> torch.Tensor:
    """Spherical interpolation of each image, (B, C, h, w); straight where the two have one direction."""
    x, y = a.flatten(1).double(), b.flatten(1).double()
    cosine = torch.nn.functional.cosine_similarity(x, y, dim=1).clamp(-1, 1)
    angle = cosine.arccos().unsqueeze(1)
    near = angle < 1e-6
    sine = angle.sin().masked_fill(near, 1)
    first = torch.where(near, 1 - weight, ((1 - weight) * angle).sin() / sine)
    second = torch.where(near, weight, (weight * angle).sin() / sine)
    return (first * x + second * y).to(a).reshape(a.shape)


def by_kind(figures: Figures, kinds: list[str]) -> dict[str, dict[str, float | None]]:
    """Medians over each kind, and over "all" that are not plain with the worst image; infinite figures are None."""
    groups = {"all": [kind not in PLAIN for kind in kinds]}
    names = list(dict.fromkeys(kinds))
    if len(names) > 1:
        groups |= {name: [kind == name for kind in kinds] for name in names}
    elif names[0] in PLAIN:
        groups = {names[0]: [True] * len(kinds)}
    found = {}
    for group, mask in groups.items():
        chosen = {name: values.cpu().double()[torch.tensor(mask)] for name, values in figures.items()}
        found[group] = {"count": sum(mask), **{name: _short(_median(values)) for name, values in chosen.items()}}
        if "latent_psnr" in chosen and group == "all":
            found[group]["worst"] = _short(float(chosen["latent_psnr"].min()))
        if "below_vae" in chosen and group == "all":
            found[group]["most_below_vae"] = _short(float(chosen["below_vae"].max()))
    return found


def there_and_back(pipe: Any, case: Case, x: torch.Tensor, prompts: list[str]):
    """The inversion, the latents it returns to, and the latents half way back."""
    inversion, middle = _inverted(pipe, case, x, prompts), []

    def note(pipe: Any, step: int, t: float, tensors: dict[str, torch.Tensor]) -> None:
        if step + 1 == case.steps - case.steps // 2:
            middle.append(tensors["latents"].clone())

    options = {"guidance_scale": case.back, "dtype": case.dtype, "callback_on_step_end": note}
    back = reconstruct(pipe, inversion, output_type="latent", **options)
    return inversion, back.latents, middle[0]


def _inverted(pipe: Any, case: Case, x: torch.Tensor, prompts: list[str]) -> Inversion:
    return invert(
        pipe,
        x,
        prompts,
        method=case.method,
        num_inference_steps=case.steps,
        guidance_scale=case.guidance,
        dtype=case.dtype,
        save_trajectory=True,
    )


def _sampled(pipe: Any, noise: torch.Tensor, steps: int, prompts: list[str]) -> torch.Tensor:
    grid = Schedule.from_scheduler(pipe.scheduler, steps)
    start = Inversion(noise, noise, {}, grid, DDIM(), grid.num_steps, prompts, None, 1.0, None)
    return reconstruct(pipe, start, output_type="latent").latents


def _latents(inversion: Inversion, latents: torch.Tensor, steps: int) -> Figures:
    x = inversion.init_latents.double().flatten(1)
    gain = (latents.double().flatten(1) * x).sum(1) / x.square().sum(1)
    evaluations = torch.tensor(inversion.stats.evaluations, dtype=torch.float64) / steps
    return {
        "evaluations": evaluations,
        "latent_psnr": metrics.latent_psnr(latents, inversion.init_latents),
        "gain": gain,
    }


def _noise(latents: torch.Tensor) -> Figures:
    return {"noise_std": latents.std((1, 2, 3)), "noise_kurtosis": metrics.kurtosis(latents)}


def _error(x: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """(B,) ||d|| / ||ref||."""
    reference = reference.double().flatten(1)
    return (x.double().flatten(1) - reference).norm(dim=1) / reference.norm(dim=1)


def _median(values: torch.Tensor) -> float:
    """The middle value, the mean of the two middle ones where there are two."""
    ordered = values.sort().values
    return float((ordered[(len(values) - 1) // 2] + ordered[len(values) // 2]) / 2)


def _short(value: float) -> float | None:
    """Four digits; None for infinity, which is a PSNR without a difference."""
    if math.isnan(value):
        raise FloatingPointError("a figure is not a number")
    return None if math.isinf(value) else float(f"{value:.4g}")
