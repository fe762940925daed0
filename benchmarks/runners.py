"""One inversion step by every runtime and by what people use today, each as a function of the latents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler

from benchmarks.networks import SCHEDULER, Case
from invfast import Schedule
from invfast.adapters import unets
from invfast.denoiser import axes
from invfast.denoiser.clone import own_dtype, private
from invfast.denoiser.predictor import Predictor
from invfast.fingerprint import fingerprint
from invfast.methods import DDIM, Problem
from invfast.runtimes import RUNTIMES, Spec


class Runner(NamedTuple):
    """latents -> latents one step noisier, and latents -> the network's output on the way."""

    step: Callable[[torch.Tensor], torch.Tensor]
    evaluate: Callable[[torch.Tensor], torch.Tensor]


STEPS, INDEX = 50, 25
"""Of the grid, and the one that is timed."""
TIME = 501
"""At which the network is asked in it."""
CPU = torch.device("cpu")


def ours(runtime: str, dtype: torch.dtype, module: torch.nn.Module, case: Case) -> Runner:
    """A step of `invert` on a runtime: what `invert` runs between two callbacks."""
    engine, inputs = RUNTIMES[runtime], case.inputs()
    said = engine.unavailable() or engine.refuses(CPU, dtype)
    if said:
        raise RuntimeError(said)
    own = private(module, engine.weights_dtype(dtype) or own_dtype(module), engine.memory_format(CPU))
    given = engine.input_dtype(dtype)
    example = {name: value if name == "t" else value.to(given) for name, value in inputs.items()}
    sides = axes(example, unets.halvings(getattr(module, "unet", module)))
    spec = Spec(CPU, dtype, lambda: fingerprint(module).exact, axes=sides)
    network = engine.prepare(own, example, spec)
    static = {name: value for name, value in example.items() if name not in ("x", "t")}
    predict = Predictor(network, static, 1, 1, dtype, engine.traits.dynamic_batch, given)
    grid = Schedule.from_scheduler(DDIMScheduler(**SCHEDULER, clip_sample=False, set_alpha_to_one=False), STEPS)
    stepper = DDIM().inverter(Problem(grid, 1.0, CPU, torch.float32, None))

    at = grid.on(CPU)[INDEX]

    @torch.inference_mode()
    def step(x: torch.Tensor) -> torch.Tensor:
        return stepper.step(at, {"latents": x}, predict)[0]["latents"]

    @torch.inference_mode()
    def evaluate(x: torch.Tensor) -> torch.Tensor:
        return predict(x, at.t)[0]

    return Runner(step, evaluate)


def diffusers_loop(dtype: torch.dtype, module: torch.nn.Module, case: Case, compiled: bool = False) -> Runner:
    """A step of the loop people write: DDIMInverseScheduler, the network as its documentation says."""
    layout = torch.preserve_format if dtype == torch.float32 and not compiled else torch.channels_last
    network: Any = private(module, dtype, layout)
    if compiled:
        network = torch.compile(network, fullgraph=True)
    inputs = {name: value if name == "t" else value.to(dtype) for name, value in case.inputs().items()}
    static = {name: value for name, value in inputs.items() if name not in ("x", "t")}
    scheduler = DDIMInverseScheduler(**SCHEDULER, clip_sample=False, set_alpha_to_one=False)
    scheduler.set_timesteps(STEPS)
    t = scheduler.timesteps[INDEX]

    @torch.no_grad()
    def step(x: torch.Tensor) -> torch.Tensor:
        return scheduler.step(evaluate(x), t, x.to(dtype)).prev_sample

    @torch.no_grad()
    def evaluate(x: torch.Tensor) -> torch.Tensor:
        return network(x.to(dtype), t, **static, return_dict=False)[0]

    return Runner(step, evaluate)


def raw_openvino(hint: str, module: torch.nn.Module, case: Case) -> Runner:
    """OpenVINO's own conversion of the same network, static shapes, and nothing around it but the feed."""
    inputs = case.inputs()
    names = [name for name in inputs if name not in ("x", "t")]

    class Positional(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, x: torch.Tensor, t: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
            return self.module(x, t, **dict(zip(names, rest, strict=True)), return_dict=False)[0]

    step = _by_openvino(hint, Positional(), tuple({**inputs, "t": torch.tensor(TIME)}.values()))
    return Runner(step, lambda x: step(x).clone())


def vae_part(hint: str, module: torch.nn.Module, example: torch.Tensor) -> Runner:
    """Half a VAE on OpenVINO."""
    step = _by_openvino(hint, module, (example,))
    return Runner(step, lambda x: step(x).clone())


def vae_part_in_torch(dtype: torch.dtype, module: torch.nn.Module, example: torch.Tensor) -> Runner:
    """Half a VAE as `invert` and `reconstruct` run it: eager, its weights channels_last."""
    own = private(module, dtype, torch.channels_last)

    @torch.inference_mode()
    def step(x: torch.Tensor) -> torch.Tensor:
        return own(x.to(dtype))

    return Runner(step, step)


def _by_openvino(
    hint: str, module: torch.nn.Module, example: tuple[torch.Tensor, ...]
) -> Callable[[torch.Tensor], torch.Tensor]:
    """The module as a function of its first input, the others fixed; answers from a buffer that the next call fills."""
    import openvino

    with torch.no_grad():
        model = openvino.convert_model(module, example_input=example)
    model.reshape({port: list(value.shape) for port, value in zip(model.inputs, example, strict=True)})
    settings = {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"}
    request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()

    def step(x: torch.Tensor) -> torch.Tensor:
        feed = [x.numpy(), *(value.numpy() for value in example[1:])]
        request.infer(feed, share_inputs=True, share_outputs=True)
        return torch.from_numpy(request.get_output_tensor(0).data)

    return step
