"""One step of an inversion: every runtime beside what people use today, interleaved in one run. And the VAE's halves.

    python -m pytest benchmarks --benchmark-only --timeout=0 -k "one_step and SD1.5 and 256" --runners "eager,OpenVINO"

All of SD1.5's runners at once take 27 GiB of memory; `--runners` names some, the baseline should be among them.

A row a runner goes to out/bench/runtimes.jsonl or vae.jsonl; `python -m benchmarks.report` makes tables and a chart.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.interleaved import Interleaved
from benchmarks.networks import CASES, VAE, Encode, sd15_vae
from benchmarks.runners import Runner, diffusers_loop, ours, raw_openvino, vae_part, vae_part_in_torch

F32, BF16 = torch.float32, torch.bfloat16
RUNNERS: dict[str, tuple[str, Callable[..., Runner]]] = {
    "diffusers eager float32": ("float32", partial(diffusers_loop, F32)),
    "diffusers torch.compile float32": ("float32", partial(diffusers_loop, F32, compiled=True)),
    "raw OpenVINO float32": ("float32", partial(raw_openvino, "f32")),
    "invfast eager float32": ("float32", partial(ours, "eager", F32)),
    "invfast compile float32": ("float32", partial(ours, "compile", F32)),
    "invfast openvino float32": ("float32", partial(ours, "openvino", F32)),
    "diffusers eager bfloat16, channels_last": ("bfloat16", partial(diffusers_loop, BF16)),
    "diffusers torch.compile bfloat16": ("bfloat16", partial(diffusers_loop, BF16, compiled=True)),
    "raw OpenVINO bfloat16": ("bfloat16", partial(raw_openvino, "bf16")),
    "invfast eager bfloat16": ("bfloat16", partial(ours, "eager", BF16)),
    "invfast compile bfloat16": ("bfloat16", partial(ours, "compile", BF16)),
    "invfast openvino bfloat16": ("bfloat16", partial(ours, "openvino", BF16)),
}
VAE_RUNNERS: dict[str, tuple[str, Callable[..., Runner]]] = {
    "eager float32": ("float32", partial(vae_part_in_torch, F32)),
    "OpenVINO float32": ("float32", partial(vae_part, "f32")),
    "eager bfloat16": ("bfloat16", partial(vae_part_in_torch, BF16)),
    "OpenVINO bfloat16": ("bfloat16", partial(vae_part, "bf16")),
}


@pytest.mark.parametrize("name", CASES)
def test_one_step(name, benchmark, request):
    """Rounds of one step by each runner in turn; per runner the times, and the error of the step against float32."""
    case = CASES[name]
    module = case.network()
    x = case.inputs()["x"]
    made = {runner: (dtype, partial(make, module, case)) for runner, (dtype, make) in RUNNERS.items()}
    with FlopCounterMode(display=False) as counter:
        reference = diffusers_loop(F32, module, case).evaluate(x)
    compared = Interleaved(name, x, reference, counter.get_total_flops(), request.config.getoption("runners"))
    compared.run(made, "runtimes", benchmark)


@pytest.mark.parametrize("name", VAE)
def test_vae(name, benchmark, request):
    """Half a VAE, as it is run and on OpenVINO."""
    part, side = VAE[name]
    module = part(sd15_vae())
    shape = (1, 3, side, side) if part is Encode else (1, 4, side // 8, side // 8)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    made = {runner: (dtype, partial(make, module, x)) for runner, (dtype, make) in VAE_RUNNERS.items()}
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        reference = module(x)
    compared = Interleaved(name, x, reference, counter.get_total_flops(), request.config.getoption("runners"))
    compared.run(made, "vae", benchmark)
