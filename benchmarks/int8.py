"""Does an exact method invert a quantised network as exactly as the full one? python -m benchmarks.int8

The bundled model in float32, bfloat16 and int8; both directions of a round trip run the same network. Per dtype and
method the mean latent PSNR of the round trip of every fourth sample image (a CPU without bfloat16 takes ten times as
long in it); per dtype the error of one evaluation against eager float32, on latents of float32 inversions of all images
over the whole grid, and its time, all dtypes in turn. Rows: benchmarks/results/int8.jsonl.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks import markdown, rows
from invfast import adapters, demo, invert, metrics, reconstruct
from invfast.adapters import Prompts
from invfast.methods import METHODS, FixedPoint, Method
from invfast.runtimes import RUNTIMES

STEPS, ROUNDS, TIMED, EVERY = 50, 21, 4, 4
CPU = torch.device("cpu")
FILE = rows.RESULTS / "int8.jsonl"
METHODS_RUN: dict[str, Method] = {
    "DDIM": METHODS["ddim"],
    "warm start": METHODS["warm_start"],
    "Anderson 3": FixedPoint(3, "anderson"),
    "Anderson 5": FixedPoint(5, "anderson"),
}


def variants() -> list[tuple[str, str]]:
    """(runtime, dtype); bfloat16 on OpenVINO where this CPU has it, otherwise eager."""
    half = RUNTIMES["openvino"].refuses(CPU, torch.bfloat16)
    return [("openvino", "float32"), ("openvino", "int8"), ("eager" if half else "openvino", "bfloat16")]


def round_trips(pipe: Any, images: list, prompts: list[str], runtime: str, dtype: str) -> list[dict[str, Any]]:
    """A row a method: mean latent PSNR over the images, dB, and evaluations of the inversion."""
    found = []
    for name, method in METHODS_RUN.items():
        where = {"runtime": runtime, "dtype": dtype}
        there = invert(pipe, images, prompts, method=method, num_inference_steps=STEPS, **where)
        back = reconstruct(pipe, there, output_type="latent", **where)
        psnr = metrics.latent_psnr(back.latents, there.init_latents).double()
        evaluations = sum(there.stats.evaluations) / len(images)
        found.append(
            {
                "case": f"round trip, {len(images)} images, {STEPS} steps",
                "runner": runtime,
                "dtype": dtype,
                "method": name,
                "evaluations": evaluations,
                "latent_psnr": float(psnr.mean()),
                "latent_psnr_min": float(psnr.min()),
                **rows.place(),
            }
        )
        print(trip_table(found[-1:]).splitlines()[-1], flush=True)
    return found


def evaluations(pipe: Any, images: list, prompts: list[str]) -> list[dict[str, Any]]:
    """A row a runtime and dtype: error and time of one evaluation."""
    path = invert(
        pipe, images, prompts, num_inference_steps=STEPS, runtime="eager", dtype="float32", save_trajectory=True
    )
    nodes, times = path.trajectory[:-1:5], path.schedule.t[1::5]
    every = [("eager", "float32"), *variants()]
    whole = {each: _predictor(pipe, prompts, nodes[0], path.schedule.t, *each) for each in every}
    with torch.inference_mode():
        wanted = [whole[every[0]](x, t) for x, t in zip(nodes, times, strict=True)]
        errors = {
            each: [_distance(call(x, t), ref) for x, t, ref in zip(nodes, times, wanted, strict=True)]
            for each, call in whole.items()
        }
        few = {each: _predictor(pipe, prompts[:TIMED], nodes[0][:TIMED], path.schedule.t, *each) for each in every}
        seconds = _seconds(few, nodes[len(nodes) // 2][:TIMED], times[len(nodes) // 2])
    return [
        {
            "case": f"one evaluation of {TIMED} images",
            "runner": runtime,
            "dtype": dtype,
            **rows.percentiles(seconds[runtime, dtype]),
            "error": sum(errors[runtime, dtype]) / len(wanted),
            "error_max": max(errors[runtime, dtype]),
            **rows.place(),
        }
        for runtime, dtype in every
    ]


def _predictor(
    pipe: Any, prompts: list[str], x: torch.Tensor, times: torch.Tensor, runtime: str, dtype: str
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    model = adapters.resolve(pipe)(pipe, runtime, dtype)
    predict = model.denoiser.predictor(x, times, model.condition(x, Prompts(prompts), 1.0))
    return lambda latents, time: predict(latents, time)[0].float()


def _distance(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((got - wanted).norm() / wanted.norm())


def trip_table(found: list[dict[str, Any]]) -> str:
    """Markdown, a line a method and network."""
    lines = []
    for row in found:
        psnr = (f"{row[name]:.1f}" for name in ("latent_psnr", "latent_psnr_min"))
        lines.append([row["method"], f"{row['runner']} {row['dtype']}", f"{row['evaluations']:.0f}", *psnr])
    return markdown.table(["method", "network", "evaluations", "latent PSNR, dB", "worst image"], lines)


def _seconds(calls: dict[Any, Callable], x: torch.Tensor, t: torch.Tensor) -> dict[Any, list[float]]:
    times: dict[Any, list[float]] = {each: [] for each in calls}
    for _ in range(ROUNDS):
        for each, call in calls.items():
            began = time.perf_counter()
            call(x, t)
            times[each].append(time.perf_counter() - began)
    return {each: found[1:] for each, found in times.items()}  # the first round warms up


def main() -> None:
    """Prints both tables and adds their rows to the file."""
    pipe = demo.load_pipeline()
    images, prompts = (list(each) for each in zip(*demo.load_images().values(), strict=True))
    one = evaluations(pipe, images, prompts)
    lines = []
    for row in one:
        spread = f"{row['p50'] * 1e3:.1f} ({row['p20'] * 1e3:.1f} to {row['p80'] * 1e3:.1f})"
        lines.append([f"{row['runner']} {row['dtype']}", f"{row['error']:.1e}", f"{row['error_max']:.1e}", spread])
    head = ["runtime, dtype", "error, mean", "largest", "ms p50 (p20 to p80)"]
    print(f"{rows.place()['machine']}\n\n{markdown.table(head, lines)}\n")
    trips = []
    for each in variants():
        trips += round_trips(pipe, images[::EVERY], prompts[::EVERY], *each)
    print(f"\n{trip_table(trips)}")
    rows.write(FILE, [*one, *trips])
    of = {(row["dtype"], row["method"]): row["latent_psnr"] for row in trips}
    for name in ("Anderson 3", "Anderson 5"):
        quantised, full = (of[dtype, name] - of[dtype, "DDIM"] for dtype in ("int8", "float32"))
        print(f"\n{name} over DDIM in int8: {quantised:+.1f} dB; in float32: {full:+.1f} dB")


if __name__ == "__main__":
    main()
