"""Where fixed points oscillate: python -m benchmarks.damping [CASE ...].

Rows: results/damping.jsonl; the table: docs/accuracy.md.

Every step x_b = f(x_b) of an inversion is given 40 evaluations by each scheme, from the same latent, which the best of
them moves on; what is counted are steps of images that end with |f(y) - y| / |f(y)| below 1e-3, after 10 and after 40.
"least" takes of all iterates the one with the least residual, which costs nothing but the copy. Schemes are

    plain                   y <- f(y)
    damped, beta            y <- y + beta (f(y) - y)
    Anderson, m, beta       y <- sum_j a_j (y_j + beta (f(y_j) - y_j)), a with the least |sum_j a_j (f(y_j) - y_j)|

Walker and Ni, SIAM J. Numer. Anal. 49, 2011. "Turns" is the share of iterations whose f(y) - y points against the one
before: 100 % where an iteration oscillates, 0 where it creeps. The cases: the bundled model under guidance 7.5 on 10
steps; the bundled flow on 4 steps, and on 8 at guidance 4.5; and the flow with -4 times its velocity, on purpose: near
the data a flow's own velocity makes f rise with y, turned round it makes f fall, steeper than 1 in the first steps.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from benchmarks import markdown, rows
from benchmarks.markdown import DOCS
from invfast import Schedule, adapters, demo, ops
from invfast.adapters import Prompts

FILE = rows.RESULTS / "damping.jsonl"
IMAGES, MOST, MARKS, SOLVED = 3, 40, (10, 40), 1e-3
SCHEMES = {
    "plain": (1, 1.0),
    "damped, .5": (1, 0.5),
    "Anderson, 3": (3, 1.0),
    "Anderson, 3, .5": (3, 0.5),
    "Anderson, 3, .25": (3, 0.25),
}
"""Window, and beta."""
Velocity = Callable[[torch.Tensor, int], torch.Tensor]
"""The network's output at a node, under guidance."""


def asked(pipe: Any, grid: Schedule, scale: float, gain: float = 1.0) -> tuple[Velocity, torch.Tensor]:
    """The network's output at a node, times `gain`, and the latents of sample images."""
    pictures, prompts = (list(each[:IMAGES]) for each in zip(*demo.load_images().values(), strict=True))
    model = adapters.resolve(pipe)(pipe, "eager")
    x = model.encode(pictures, None, None)
    condition = model.condition(x, Prompts(prompts, [""] * len(prompts)), scale)
    predict = model.denoiser.predictor(x, grid.t, condition)

    def output(y: torch.Tensor, node: int) -> torch.Tensor:
        first, *second = predict(y, grid.t[node])
        return gain * (torch.lerp(second[0], first, scale) if second else first)

    return output, x


def moved(grid: Schedule, i: int, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    """x_{i+1} by the output of a network that predicts noise or a flow's velocity."""
    if grid.prediction_type == "flow":
        return x + float(grid.sigma[i + 1] - grid.sigma[i]) * output
    p = float(grid.alpha[i + 1] / grid.alpha[i])
    return p * x + (float(grid.sigma[i + 1]) - p * float(grid.sigma[i])) * output


def iterated(f: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, window: int, beta: float) -> list[Any]:
    """(f(y), relative residuals (B,), whether they turned (B,)) of every iterate y from x."""
    y, values, residuals, found, before = x, [], [], [], torch.zeros_like(x)
    for _ in range(MOST):
        new = f(y)
        turned = ((new - y) * before).flatten(1).sum(1) < 0
        found.append((new, (new - y).flatten(1).norm(dim=1) / new.flatten(1).norm(dim=1), turned.double()))
        before = new - y
        values, residuals = [*values, torch.lerp(y, new, beta)][-window:], [*residuals, new - y][-window:]
        y = ops.anderson_mix(values, residuals) if len(values) > 1 else values[0]
    return found


@torch.inference_mode()
def measured(case: str, output: Velocity, x: torch.Tensor, grid: Schedule) -> list[dict[str, Any]]:
    """A row a scheme."""
    marks = {f"{kind} {mark}": 0 for kind in ("last", "least") for mark in MARKS}
    counts: dict[str, dict[str, float]] = {name: {**marks, "turns": 0.0} for name in SCHEMES}
    for i in range(grid.num_steps):
        ends = {}
        for name, how in SCHEMES.items():
            tried = iterated(lambda y, i=i, x=x: moved(grid, i, x, output(y, i + 1)), x, *how)
            residual = torch.stack([each for _, each, _ in tried]).nan_to_num(float("inf"))
            for mark in MARKS:
                counts[name][f"last {mark}"] += int((residual[mark - 1] < SOLVED).sum())
                counts[name][f"least {mark}"] += int((residual[:mark].amin(0) < SOLVED).sum())
            best = residual.argmin(0).tolist()
            counts[name]["turns"] += float(torch.stack([turn for *_, turn in tried[1:]]).mean()) / grid.num_steps
            ends[name] = [(float(residual[k, j]), tried[k][0][j]) for j, k in enumerate(best)]
        x = torch.stack([min(each, key=lambda end: end[0])[1] for each in zip(*ends.values(), strict=True)])
        print(case, f"step {i + 1} of {grid.num_steps}", flush=True)
    total = grid.num_steps * len(x)
    return [{"case": case, "scheme": name, "of": total, **counts[name], **rows.place()} for name in SCHEMES]


def cases() -> list[tuple[str, Callable[[], tuple[Velocity, torch.Tensor]], Schedule]]:
    """Name, network and latents, grid."""
    bundled, flow = demo.load_pipeline(), demo.load_flow_pipeline()
    found = []
    grid = Schedule.from_scheduler(bundled.scheduler, 10)
    found.append(("bundled, guidance 7.5, 10 steps", partial(asked, bundled, grid, 7.5), grid))
    for steps, scale in ((4, 1.0), (8, 4.5)):
        grid = Schedule.from_scheduler(flow.scheduler, steps)
        found.append((f"flow, guidance {scale:g}, {steps} steps", partial(asked, flow, grid, scale), grid))
    grid = Schedule.from_scheduler(flow.scheduler, 8)
    found.append(("flow, velocity times -4, 8 steps", partial(asked, flow, grid, 1.0, -4.0), grid))
    return found


def table(found: Sequence[dict[str, Any]]) -> str:
    """Markdown, a line a scheme."""
    heads = [f"{kind}, {mark}" for kind in ("last", "least") for mark in MARKS]
    lines = []
    for row in found:
        shares = (f"{row[head.replace(',', '')] / row['of']:.0%}" for head in heads)
        turns = f"{row['turns']:.0%}" if "turns" in row else ""
        lines.append([row["case"], row["scheme"], *shares, turns])
    return markdown.table(["case", "scheme", *heads, "turns"], lines)


def main(asked: Sequence[str]) -> None:
    """Prints the table and writes its rows; those of other cases, where some are asked for, stay."""
    known = [json.loads(line) for line in FILE.read_text().splitlines()] if FILE.exists() else []
    found = []
    for case, make, grid in cases():
        if asked and case not in asked:
            found += [row for row in known if row["case"] == case]
            continue
        found += measured(case, *make(), grid)
        print(table(found[-len(SCHEMES) :]), flush=True)
    rows.write(FILE, found)
    markdown.write(DOCS / "accuracy.md", "damping", f"{table(found)}\n\n{found[0]['machine']}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
