"""One pass over the grid, in either direction: what a method is told, how its steps are taken, what is said of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from diffusers.utils.torch_utils import randn_tensor

from invfast import arguments, ops
from invfast.adapters import Adapter, Prompts
from invfast.ambient import numerics, switches
from invfast.denoiser import EMBEDS, MASK, SCALES, Condition, Predictor, alike
from invfast.executors import SHORTEST, Captured, Executor, Plain, cuda_graphs
from invfast.integrate import Hooks, Run, integrate
from invfast.inversion import Stats
from invfast.methods import Method, Problem
from invfast.methods.base import State, Stepper
from invfast.schedule import Schedule
from invfast.store import READY, Made

logger = logging.getLogger("invfast")


def problem(
    model: Adapter,
    grid: Schedule,
    guidance_scale: float,
    generator: torch.Generator | list[torch.Generator] | None,
    batch: int,
    kernels: str | None,
    condition: Condition = ({}, None),
    cuda_graph: bool | None = None,
) -> Problem:
    """What the method may know of this run, its kernels chosen for the way its steps are taken."""
    if isinstance(generator, list) and len(generator) != batch:
        raise ValueError(f"generator has {len(generator)} generators for {batch} images; pass one, or one an image")

    device, dtype = model.device, model.latent_dtype  # not the model itself: a kept graph would hold its pipeline

    def draw(shape: Sequence[int], seed: int) -> torch.Tensor:
        own = [torch.Generator().manual_seed(seed + j) for j in range(batch)] if generator is None else generator
        # Drawn in float32 whatever the run's dtype: a seed means one noise.
        return randn_tensor(tuple(shape), own, device, torch.float32).to(dtype)

    captured = cuda_graph is not False and device.type == "cuda" and model.denoiser.runtime.traits.capturable
    chosen = ops.resolve(device, kernels, captured)
    embeds = _embeds(model, condition)
    two = condition[1] is not None
    weight = guidance_scale if two and guidance_scale < 1 else _weight(model, guidance_scale)
    return Problem(grid, weight, device, dtype, draw, chosen, embeds)


def first(
    model: Adapter, method: Method, guidance_scale: float, prompts: Prompts, latents: torch.Tensor
) -> tuple[Condition, float]:
    """Condition and guidance of the way up: the caller's, or the method's where that is a setting of its own.

    Raises:
        ValueError: a method's guidance below 1, where the network is not asked twice and weighed.
    """
    own = method.inverse_guidance
    if own is None or own == 1:
        return model.condition(latents, prompts, guidance_scale), guidance_scale
    condition = model.condition(latents, prompts, own)
    if own > 1:
        return condition, own
    both = model.condition(latents, prompts, 2.0)
    if both[1] is None or _weight(model, 2.0) != 2.0:
        raise ValueError(
            f"inverse_guidance={own:g} weighs the outputs of two prompts, which {type(model.pipe).__name__} does not "
            "do; leave it at 1 or above"
        )
    return both, own


def second(
    model: Adapter, method: Method, first: Problem, prompts: Prompts, latents: torch.Tensor, guidance_scale: float = 1.0
) -> tuple[Problem, Condition] | None:
    """What a method with a guidance of its own works for: that problem and condition; None for the other methods.

    Raises:
        ValueError: the inversion itself is asked for under guidance, or the network knows none.
    """
    scale, name = method.guidance_scale, type(method).__name__
    if scale is None:
        return None
    if model.guidance(guidance_scale) > 1:
        raise ValueError(
            f"{name} inverts at guidance_scale=1 and has the guidance of the way back among its own settings; give "
            f"guidance_scale={guidance_scale:g} to the method instead"
        )
    condition = model.condition(latents, prompts, scale)
    if condition[1] is None:
        raise ValueError(f"{name} is for classifier-free guidance, which this pipeline's network does without")
    found = replace(first, guidance_scale=_weight(model, scale), embeds=_embeds(model, condition))
    if method.text_embeds and MASK in condition[0]:
        raise ValueError(
            f"{name} {method.text_embeds} text embeddings, and this network's are of any length under a mask; take "
            "Direct"
        )
    if method.text_embeds and not found.embeds:
        raise ValueError(
            f"{name} {method.text_embeds} text embeddings, which this pipeline's network has none of; take Direct"
        )
    positive, negative = condition
    told = positive.keys() - {EMBEDS, *SCALES}
    others = sorted(each for each in told if positive[each] is not negative[each])  # a control image is in both
    if method.text_embeds == "shares" and others:
        raise ValueError(
            f"{name} makes both branches one by their text embeddings, and this network's differ in "
            f"{', '.join(others)} too; take NullText or Direct"
        )
    return found, condition


def refine(
    model: Adapter,
    method: Method,
    problem: Problem,
    condition: Condition,
    first: Run,
    node: int,
    stats: Stats,
    cuda_graph: bool | None = None,
) -> tuple[State, Stats]:
    """The method's second pass: what it keeps, and how both passes went together."""
    stepper = method.refiner(problem, node)
    none = hooks(model, None, (), False)
    found, own = run(model, problem, stepper, first.state, condition, none, method, cuda_graph)
    if found.steps_taken < len(stepper.steps):
        logger.warning("interrupted while refining, after %d of %d steps", found.steps_taken, len(stepper.steps))
    both = replace(
        stats,
        evaluations=tuple(map(sum, zip(stats.evaluations, own.evaluations, strict=True))),
        samples=stats.samples + own.samples,
        seconds=stats.seconds + own.seconds,
    )
    return {name: found.state[name] for name in stepper.keep}, both


def hooks(model: Adapter, callback: Callable | None, names: Sequence[str], trajectory: bool) -> Hooks:
    """The caller's callback, its tensors by name, checked both ways."""

    def on_step(step: int, t: int | float, tensors: dict[str, torch.Tensor]) -> dict | None:
        return callback(model.pipe, step - 1, t, tensors)

    return Hooks(
        on_step if callback else None,
        tuple(names),
        arguments.replacements,
        interrupted=lambda: model.interrupted,
        trajectory=trajectory,
    )


def run(
    model: Adapter,
    problem: Problem,
    stepper: Stepper,
    state: State,
    condition: Condition,
    hooks: Hooks,
    method: Method,
    cuda_graph: bool | None = None,
    check: Callable[[], None] = lambda: None,
) -> tuple[Run, Stats]:
    """All steps of `stepper`, which is the method's, under the pipeline's own progress bar.

    `check` is called once the network is ready, before the first step.

    Raises:
        ValueError: cuda_graph=True where steps cannot be captured; says why.
    """
    grid = problem.schedule
    predict = model.denoiser.predictor(state["latents"], grid.asked, condition, grid.num_steps)
    check()
    with _executor(model, problem, stepper, predict, state, method, cuda_graph) as take:
        with model.pipe.progress_bar(total=len(stepper.steps)) as bar:
            found = integrate(take, state, grid, replace(hooks, progress=bar.update))
        # Before the executor is handed back: another thread's run starts its counts anew.
        evaluations, samples = tuple(take.counts.evaluations), take.counts.samples
    stats = Stats(
        evaluations=evaluations,
        samples=samples,
        seconds=found.seconds,
        residual=found.residual,
        runtime=model.denoiser.runtime.name,
        reason=model.denoiser.reason,
        dtype=predict.dtype,
        device=str(model.device),
        kernels=problem.kernels.name,
        cuda_graph=take.captured,
        precomputed=model.denoiser.precomputed,
        reached=reached(stepper, found.residual, predict.dtype),
    )
    return found, stats


def reached(stepper: Stepper, residual: torch.Tensor | None, dtype: torch.dtype) -> tuple[bool, ...] | None:
    """Of each image whether every step ended below the tolerance that the stepper promised, None where there is none.

    Where one did not, the log says so.
    """
    tolerance = stepper.tolerance
    if tolerance is None or residual is None:
        return None
    # The steps compared squares in the latents' dtype: what they took for below is, up to that dtype's rounding.
    above = ~(residual < tolerance * (1 + 1e-6))
    missed = above.any(0)
    if bool(missed.any()):
        logger.warning(
            "%d of %d images did not reach the tolerance of %.1e: up to %d of %d steps ended above it, at up to %.1e "
            "(%s; see stats.reached and stats.residual); more iterations, more steps or a wider dtype may reach it",
            *(int(missed.sum()), len(missed), tolerance, int(above.sum(0).max()), len(above), float(residual.max())),
            str(dtype).removeprefix("torch."),
        )
    return tuple((~missed).tolist())


def _weight(model: Adapter, guidance_scale: float) -> float:
    """Of the conditional output in a row; 1 where the network answers with one output, made of both branches or not."""
    return 1.0 if model.denoiser.form.combine else model.guidance(guidance_scale)


def _embeds(model: Adapter, condition: Condition) -> tuple[torch.Tensor, ...]:
    """The text embeddings of each branch, as many tokens in each, in the latents' dtype."""
    each = [branch[EMBEDS] for branch in alike(*condition, model.denoiser.form.repeats) if branch and EMBEDS in branch]
    return tuple(value.to(model.device, model.latent_dtype) for value in each)


@contextmanager
def _executor(
    model: Adapter,
    problem: Problem,
    stepper: Stepper,
    predict: Predictor,
    state: State,
    method: Method,
    cuda_graph: bool | None,
) -> Iterator[Executor]:
    """What takes the steps: CUDA graphs where it can be and was not declined, those of an earlier call where nothing
    differs.
    """
    ready = model.denoiser
    why = ready.uncapturable
    if why is None and all(len(phase) < SHORTEST for phase in stepper.phases):
        why = f"{type(method).__name__} has no {SHORTEST} steps on this grid that launch the same work"
    if cuda_graph and why:
        raise ValueError(f"cuda_graph=True is unavailable: {why}; pass None or False")
    if why or cuda_graph is False:
        yield Plain(stepper, predict)
        return

    def make() -> Made:
        made = Captured(stepper, predict, problem.schedule, model.device, cuda_graphs(model.device))
        return Made(made, lambda: made.size, model.device, ready.network.module)

    if not stepper.reusable or ready.network.key is None:
        yield make().value
        return
    shapes = tuple((n, tuple(x.shape), x.dtype) for n, x in (*state.items(), *predict.static.items()))
    steps = stepper.steps  # ranges of one step are equal whichever way they go
    key = (
        *("graphs", *ready.network.key, ready.runtime.name, ready.dtype, ready.device, ready.precomputed, shapes),
        *(numerics(model.device), switches(), ready.network.code),
        *(problem.schedule.digest, problem.guidance_scale, problem.dtype, problem.kernels.name),
        *(type(stepper), repr(method), steps.start, steps.stop, steps.step),
    )
    with READY.lend(key, make) as held:
        yield held.begin(stepper, predict)
