"""Published settings beside the ones here: python -m benchmarks.official. Rows: results/official.jsonl.

On sample images of the bundled model, guidance 1, float32, medians: where the network is asked, in DDIM and in the
first step of what begins with one; both of EasyInv's variants; both latents of EDICT's pair under another prompt;
ReNoise's shifts; BDIA's gamma; O-BELM's recurrence as it is written and as it is computed here; and what is held while
a step is iterated, long-hand. The tables: docs/coming_from.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks import markdown, rows
from benchmarks.markdown import DOCS
from invfast import Schedule, adapters, demo, invert, metrics, reconstruct
from invfast.adapters import Prompts
from invfast.methods import BDIA, DDIM, EDICT, OBELM, EasyInv, FixedPoint, Method, ReNoise
from invfast.reference import reversible

FILE = rows.RESULTS / "official.jsonl"
IMAGES, HELD_IMAGES, GRIDS = 4, 8, (10, 20, 50)
WARM = {"warm_start": "constant"}
PAIRS: dict[str, tuple[Method, Method, tuple[int, ...]]] = {
    "DDIM, asked at the source": (DDIM(), DDIM("source"), GRIDS),
    "Uni-Inv, first asked at the source": (FixedPoint(1, **WARM), FixedPoint(1, **WARM, first="source"), GRIDS),
    "BDIA, first asked at the source": (BDIA(), BDIA(first="source"), GRIDS),
    "O-BELM, first asked at the source": (OBELM(), OBELM("source"), GRIDS),
    "EasyInv, before": (EasyInv(), EasyInv(variant="before"), GRIDS),
    "ReNoise 9, shifts by channel": (ReNoise(9), ReNoise(9, shifts="channel"), (10,)),
    "BDIA, gamma .9": (BDIA(), BDIA(0.9), (50,)),
    "BDIA, gamma .5": (BDIA(), BDIA(0.5), (10, 50)),
}
"""The one here, the published one, and by how many steps."""
Network = Callable[[torch.Tensor, int], torch.Tensor]


def samples(count: int) -> tuple[list[Any], list[str]]:
    """The first sample images, and what they show."""
    pictures, prompts = zip(*list(demo.load_images().values())[:count], strict=True)
    return list(pictures), list(prompts)


def distance(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Median over images of ||d|| / ||ref||."""
    apart = (found.double() - wanted.double()).flatten(1).norm(dim=1)
    return float((apart / wanted.double().flatten(1).norm(dim=1)).median())


def compared(pipe: Any) -> list[dict[str, Any]]:
    """A row a pair and grid: how far x_T lie apart, how well each rebuilds, and its deviation."""
    images, prompts = samples(IMAGES)
    found, known = [], {}
    for case, (own, published, grids) in PAIRS.items():
        for steps in grids:
            for method in (own, published):
                if (method, steps) not in known:
                    inv = invert(pipe, images, prompts, method=method, num_inference_steps=steps, runtime="eager")
                    back = reconstruct(pipe, inv, output_type="latent", runtime="eager").latents
                    psnr = float(metrics.latent_psnr(back, inv.init_latents).median())
                    known[method, steps] = inv.latents, psnr, float(inv.latents.flatten(1).std(1).median())
            (x, psnr, std), (y, other, spread) = known[own, steps], known[published, steps]
            figures = {"x_T": distance(y, x), "latent_psnr": [psnr, other], "std": [std, spread]}
            found.append({"case": case, "steps": steps, **figures, **rows.place()})
            print(table(found[-1:]).splitlines()[-1], flush=True)
    return found


def paired(pipe: Any) -> list[dict[str, Any]]:
    """How far EDICT's two latents end apart under another prompt."""
    images, prompts = samples(IMAGES)
    others, found = prompts[1:] + prompts[:1], []
    for steps in (9, 10, 20):
        inv = invert(pipe, images, prompts, method=EDICT(), num_inference_steps=steps, runtime="eager")
        back = reconstruct(pipe, inv, prompt=others, output_type="latent", runtime="eager")
        found.append({"case": "EDICT's y beside x", "steps": steps, "apart": distance(back.partner, back.latents)})
        found[-1] |= rows.place()
    return found


def computed(pipe: Any) -> list[dict[str, Any]]:
    """O-BELM in float32 as the formula is written, and as it is computed here, against float64."""
    (images, prompts), steps = samples(2), 12
    given = {"method": OBELM(), "num_inference_steps": steps, "runtime": "eager"}
    exact = invert(pipe, images, prompts, dtype="float64", **given)
    own = invert(pipe, images, prompts, **given)
    nodes = own.schedule
    grid = list(
        zip(
            nodes.t[1:].tolist(),
            (nodes.source_alpha**2).tolist(),
            (nodes.alpha[1:] ** 2).tolist(),
            strict=True,
        )
    )
    predict, x = network(pipe, images, prompts, nodes)
    with torch.inference_mode():
        written, _ = reversible.obelm_invert(predict, x, grid)
    errors = {"written": distance(written, exact.latents), "here": distance(own.latents, exact.latents)}
    return [{"case": "O-BELM in float32", "steps": steps, "errors": errors, **rows.place()}]


def network(pipe: Any, images: list[Any], prompts: list[str], nodes: Schedule) -> tuple[Network, torch.Tensor]:
    """(x, t) -> predicted noise, and the latents of images."""
    model = adapters.resolve(pipe)(pipe, "eager")
    x = model.encode(images, None, None)
    predict = model.denoiser.predictor(x, nodes.t, model.condition(x, Prompts(prompts), 1.0))
    return (lambda y, t: predict(y, torch.tensor(t))[0]), x


def held(pipe: Any, steps: int = 20) -> list[dict[str, Any]]:
    """Mean latent PSNR by what is held, the divisor d, while f(y) = y + (x_a - DOWN(y)) / d is iterated."""
    images, prompts = samples(HELD_IMAGES)
    nodes, found = Schedule.from_scheduler(pipe.scheduler, steps), []
    predict, x = network(pipe, images, prompts, nodes)
    alpha, sigma = nodes.alpha.tolist(), nodes.sigma.tolist()
    for name in ("noise", "velocity", "sample"):
        for times in (1, 3):
            psnr = metrics.latent_psnr(_rebuilt(predict, x, nodes.t.tolist(), alpha, sigma, name, times), x)
            row = {"case": f"held: the {name}", "steps": steps, "iterations": times}
            found.append({**row, "latent_psnr": float(psnr.mean()), **rows.place()})
    return found


@torch.inference_mode()
def _rebuilt(
    predict: Network,
    x: torch.Tensor,
    t: Sequence[int],
    alpha: Sequence[float],
    sigma: Sequence[float],
    name: str,
    times: int,
) -> torch.Tensor:
    """x after inversion and sampling, long-hand."""

    def down(y: torch.Tensor, i: int) -> torch.Tensor:
        ratio = alpha[i] / alpha[i + 1]
        return ratio * y + (sigma[i] - sigma[i + 1] * ratio) * predict(y, t[i + 1])

    for i in range(len(t) - 1):
        divisor = {
            "noise": alpha[i] / alpha[i + 1],
            "velocity": alpha[i] * alpha[i + 1] + sigma[i] * sigma[i + 1],
            "sample": sigma[i] / sigma[i + 1],
        }[name]
        y = x
        for _ in range(times):
            y = y + (x - down(y, i)) / divisor
        x = y
    for i in reversed(range(len(t) - 1)):
        x = down(x, i)
    return x


def table(found: Sequence[dict[str, Any]]) -> str:
    """Markdown, a line a pair and grid."""
    head = [
        "published setting",
        "N",
        "x_T apart from the one here",
        "latent PSNR, here and published",
        "x_T std, likewise",
    ]
    lines = []
    for row in found:
        (psnr, other), (std, spread) = row["latent_psnr"], row["std"]
        figures = (f"{row['x_T']:.2g}", f"{psnr:.1f}, {other:.1f}", f"{std:.2g}, {spread:.2g}")
        lines.append([row["case"], row["steps"], *figures])
    return markdown.table(head, lines)


def others(found: Sequence[dict[str, Any]]) -> str:
    """Markdown, a line a row of the other kinds."""
    lines = []
    for row in found:
        if "apart" in row:
            said = f"{row['apart']:.2g} apart"
        elif "errors" in row:
            said = f"{row['errors']['written']:.0e} as written, {row['errors']['here']:.0e} as computed here"
        else:
            said = f"{row['latent_psnr']:.1f} dB with {row['iterations']} evaluations a step"
        lines.append([row["case"], row["steps"], said])
    return markdown.table(["", "N", ""], lines)


def main() -> None:
    """Prints the tables and writes their rows."""
    pipe = demo.load_pipeline()
    pipe.set_progress_bar_config(disable=True)
    more = []
    for measure in (held, computed, paired):
        more += measure(pipe)
        print(others(more), flush=True)
    found = compared(pipe)
    rows.write(FILE, found + more)
    said = f"{table(found)}\n\n{others(more)}\n\n{found[0]['machine']}\n"
    markdown.write(DOCS / "coming_from.md", "official", said)


if __name__ == "__main__":
    main()
