"""What is held while a flow's step is solved, and what the next begins with: python -m benchmarks.held.

x_b = f(x_b) is iterated with the velocity held, f(y) = x_a + h v(y), or the noise, with p = alpha_b / alpha_a
f(y) = p x_a + (sigma_b - p sigma_a) eps(y), but the velocity where sigma_b is 1; cold, or from the last two of what is
held, extrapolated in sigma. Three flows: the exact one of 24 Gaussians in 64 dimensions, whose noise end is sigma = 1,
on even and on shifted grids; the bundled network, trained on noise, behind the exact change of variables, which ends at
.936; and the bundled flow, trained as one. Latent PSNR in dB, median, after Euler's sampler. Rows: results/held.jsonl;
the table: docs/methods/flow.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch

from benchmarks import markdown, rows
from benchmarks.markdown import DOCS
from invfast import Schedule, adapters, demo
from invfast.adapters import Prompts
from invfast.demo.reparametrised import as_flow

Velocity = Callable[[torch.Tensor, float], torch.Tensor]
FILE = rows.RESULTS / "held.jsonl"
BEGINS = {"cold, 1": (1, False), "cold, 3": (3, False), "linear, 1": (1, True)}
"""Evaluations a step, and whether a step begins where the last two lead."""


def mixture() -> tuple[Velocity, torch.Tensor]:
    """The velocity (x, sigma) -> v of a mixture of Gaussians, and draws from it, (256, 64)."""
    generator = torch.Generator().manual_seed(0)
    drawn = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    means, deviation = drawn(24, 64) @ drawn(64, 64) * 0.19, 0.35

    def velocity(x: torch.Tensor, sigma: float) -> torch.Tensor:
        alpha, variance = 1 - sigma, ((1 - sigma) * deviation) ** 2 + sigma**2
        nearness = -((x[:, None] - alpha * means) ** 2).sum(-1) / (2 * variance)
        mean = torch.softmax(nearness, 1) @ means
        clean = mean + alpha * deviation**2 / variance * (x - alpha * mean)
        return (x - clean) / sigma

    return velocity, means[torch.randint(24, (256,), generator=generator)] + deviation * drawn(256, 64)


def bundled(pipe: Any, sigmas: Sequence[float], images: int) -> tuple[Velocity, torch.Tensor]:
    """A bundled network as a flow, and latents of sample images at the grid's first sigma."""
    plain = demo.load_pipeline()
    pictures, prompts = (list(each[:images]) for each in zip(*demo.load_images().values(), strict=True))
    x = adapters.resolve(plain)(plain).encode(pictures, None, None)
    model = adapters.resolve(pipe)(pipe)
    condition = model.condition(x, Prompts(prompts), 1.0)
    predict = model.denoiser.predictor(x, torch.tensor([1000 * s for s in sigmas]), condition)
    alpha, sigma = 1 - sigmas[0], sigmas[0]
    return (lambda x, s: predict(x, torch.tensor(1000 * s))[0]), x * (alpha**2 + sigma**2) ** 0.5


@torch.inference_mode()
def rebuilt(
    velocity: Velocity, x: torch.Tensor, sigmas: Sequence[float], held: str, times: int, linear: bool
) -> torch.Tensor:
    """x after inversion and Euler's sampling."""
    past: list[tuple[float, torch.Tensor]] = []
    for low, high in pairwise(sigmas):
        p = (1 - high) / (1 - low) if held == "noise" else 1.0
        q = high - low * p
        y = p * x + q * _led(past, high) if linear and past else x
        for _ in range(times):
            v = velocity(y, high)
            kept = y + (1 - high) * v if held == "noise" else v
            y = p * x + q * kept if high < 1 else x + (high - low) * v  # where the noise is the latent itself
        past, x = [*past, (high, kept)][-2:], y
    for low, high in reversed(list(pairwise(sigmas))):
        x = x - (high - low) * velocity(x, high)
    return x


def _led(past: list[tuple[float, torch.Tensor]], wanted: float) -> torch.Tensor:
    """What the last two lead to."""
    if len(past) < 2:
        return past[-1][1]
    (a, first), (b, second) = past
    return second + (wanted - b) / (b - a) * (second - first)


def quality(back: torch.Tensor, x: torch.Tensor) -> float:
    """Median PSNR in dB, peak the range of all."""
    error = (back - x).flatten(1).square().mean(1)
    return float((10 * torch.log10((x.max() - x.min()) ** 2 / error)).median())


def measured(name: str, velocity: Velocity, x: torch.Tensor, sigmas: Sequence[float]) -> list[dict[str, Any]]:
    """A row for what is held and where steps begin."""
    found = []
    for held in ("velocity", "noise"):
        psnr = {begin: quality(rebuilt(velocity, x, sigmas, held, *how), x) for begin, how in BEGINS.items()}
        found.append({"case": f"{name}, {len(sigmas) - 1} steps", "held": held, "latent_psnr": psnr, **rows.place()})
        print(table(found[-1:]).splitlines()[-1], flush=True)
    return found


def table(found: list[dict[str, Any]]) -> str:
    """Markdown, a line a row."""
    lines = [[row["case"], row["held"], *(f"{row['latent_psnr'][begin]:.1f}" for begin in BEGINS)] for row in found]
    return markdown.table(["flow", "held", *BEGINS], lines)


def main() -> None:
    """Prints the table and writes its rows."""
    found, (velocity, x) = [], mixture()
    for shift in (1, 3):
        for steps in (8, 20, 50):
            even = [k / steps for k in range(steps + 1)]
            sigmas = [shift * s / (1 + (shift - 1) * s) for s in even]
            found += measured(f"mixture, shift {shift}", velocity, x, sigmas)
    vp = demo.load_pipeline().scheduler
    for steps in (8, 20):
        sigmas = as_flow(Schedule.from_scheduler(vp, steps)).sigma.tolist()
        found += measured("bundled", *bundled(demo.load_pipeline("flow"), sigmas, 8), sigmas)
    pipe = demo.load_flow_pipeline()
    for steps in (8, 20):
        sigmas = Schedule.from_scheduler(pipe.scheduler, steps).sigma.tolist()
        found += measured("trained", *bundled(pipe, sigmas, 8), sigmas)
    rows.write(FILE, found)
    markdown.write(DOCS / "methods" / "flow.md", "held", f"{table(found)}\n\n{found[0]['machine']}\n")


if __name__ == "__main__":
    main()
