"""What was tried for `auto`, long-hand: python -m benchmarks.trials [N ...]. Rows: benchmarks/results/trials.jsonl.

Every trial inverts every other sample image of the bundled model on the DDIM grid and is sampled back by DDIM; a row is
evaluations a step against median latent PSNR. Tried are

    where the noise is extrapolated     sigma, sigma / alpha, t, log(sigma / alpha); through two or three past noises
    predictor and corrector             the noise asked again at the corrected latent, for the next step's history
    relaxation                          past f(y) by a fraction of f(y) - y
    parallel in time                    sweeps over the whole trajectory, all steps as one batch: x_i from all noises
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import torch

from benchmarks import markdown, rows
from invfast import Schedule, adapters, demo, metrics
from invfast.adapters import Prompts

GRIDS = (10, 20)
FILE = rows.RESULTS / "trials.jsonl"
AXES: dict[str, Callable[[float, float, float], float]] = {
    "sigma": lambda alpha, sigma, t: sigma,
    "sigma / alpha": lambda alpha, sigma, t: sigma / alpha,
    "t": lambda alpha, sigma, t: t,
    "log(sigma / alpha)": lambda alpha, sigma, t: math.log(sigma / alpha),
}


class Trial:
    """A grid, the images' latents, and the network, counted."""

    def __init__(self, pipe: Any, steps: int) -> None:
        images, prompts = (list(each)[::2] for each in zip(*demo.load_images().values(), strict=True))
        model = adapters.resolve(pipe)(pipe, "eager")
        self.x = model.encode(images, None, None)
        self.grid = Schedule.from_scheduler(pipe.scheduler, steps)
        condition = model.condition(self.x, Prompts(prompts), 1.0)
        self.predict = model.denoiser.predictor(self.x, self.grid.t, condition)
        self.alpha, self.sigma = self.grid.alpha.tolist(), self.grid.sigma.tolist()
        self.steps, self.asked = self.grid.num_steps, 0

    def noise(self, x: torch.Tensor, node: int) -> torch.Tensor:
        """eps(x, t) at a node."""
        self.asked += 1
        return self.predict(x, self.grid.t[node])[0]

    def up(self, i: int) -> tuple[float, float]:
        """x_{i+1} = p x_i + q eps."""
        p = self.alpha[i + 1] / self.alpha[i]
        return p, self.sigma[i + 1] - p * self.sigma[i]

    def quality(self, x: torch.Tensor) -> float:
        """Median latent PSNR in dB after DDIM sampling from x_T."""
        asked = self.asked
        for i in reversed(range(self.steps)):
            p, q = self.up(i)
            x = (x - q * self.noise(x, i + 1)) / p
        self.asked = asked
        return float(metrics.latent_psnr(x, self.x).median())


def stepwise(
    trial: Trial, axis: str = "sigma", order: int = 2, relax: float = 0.0, again: bool = False
) -> list[torch.Tensor]:
    """All latents of an inversion of one evaluation a step, two in the second: what `auto` does at the least budget."""
    at = [AXES[axis](*each) for each in zip(trial.alpha, trial.sigma, trial.grid.t.tolist(), strict=True)]
    path, history = [trial.x], []
    for i in range(trial.steps):
        x, (p, q) = path[-1], trial.up(i)
        y = p * x + q * _extrapolated(history[-order:], at[i + 1]) if history else x
        for _ in range(2 if i == 1 else 1):
            noise = trial.noise(y, i + 1)
            f = p * x + q * noise
            asked, y = y, f
        path.append(f + relax * (f - asked) if i > 1 else f)
        history.append((at[i + 1], trial.noise(path[-1], i + 1) if again else noise))
    return path


def swept(trial: Trial, sweeps: int) -> list[torch.Tensor]:
    """After `stepwise`, iterations of the whole trajectory: all noises at its latents, then all latents from them."""
    path = stepwise(trial)
    for _ in range(sweeps):
        noises = [trial.noise(x, node) for node, x in enumerate(path[1:], 1)]  # independent: one batch on a GPU
        path = path[:1]
        for i, noise in enumerate(noises):
            p, q = trial.up(i)
            path.append(p * path[-1] + q * noise)
    return path


def _extrapolated(history: list[tuple[float, torch.Tensor]], at: float) -> torch.Tensor:
    total = torch.zeros_like(history[0][1])
    for j, (here, noise) in enumerate(history):
        others = [other for k, (other, _) in enumerate(history) if k != j]
        total += math.prod((at - other) / (here - other) for other in others) * noise
    return total


TRIALS: dict[str, Callable[[Trial], list[torch.Tensor]]] = {
    **{f"two noises in {axis}": lambda trial, axis=axis: stepwise(trial, axis) for axis in AXES},
    "three noises in sigma": lambda trial: stepwise(trial, order=3),
    "one noise": lambda trial: stepwise(trial, order=1),
    **{f"relaxed by {c}": lambda trial, c=c: stepwise(trial, relax=c) for c in (-0.1, 0.1, 0.3)},
    "asked again for the history": lambda trial: stepwise(trial, again=True),
    **{f"parallel in time, {n} sweeps": lambda trial, n=n: swept(trial, n) for n in (1, 3)},
}


def table(found: list[dict[str, Any]]) -> str:
    """Markdown, a line a trial."""
    lines = [
        [row["case"].removeprefix("N="), row["trial"], f"{row['evaluations']:.2f}", f"{row['latent_psnr']:.1f}"]
        for row in found
    ]
    return markdown.table(["N", "trial", "evaluations a step", "median latent PSNR, dB"], lines)


@torch.inference_mode()
def main() -> None:
    """Prints a table and writes the rows."""
    pipe = demo.load_pipeline()
    found = []
    for steps in [int(each) for each in sys.argv[1:]] or GRIDS:
        trial = Trial(pipe, steps)
        for name, run in TRIALS.items():
            trial.asked = 0
            last = run(trial)[-1]
            spent = trial.asked / trial.steps
            row = {"case": f"N={steps}", "trial": name, "evaluations": spent, "latent_psnr": trial.quality(last)}
            found.append({**row, **rows.place()})
            print(table(found[-1:]).splitlines()[-1], flush=True)
    rows.write(FILE, found)
    print(f"\n{table(found)}")


if __name__ == "__main__":
    main()
