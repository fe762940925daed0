"""Null-text, prompt tuning, negative-prompt and direct inversion: against their long-hand twins, on a toy."""

import dataclasses
from functools import partial

import pytest
import torch
from diffusers import DDIMScheduler
from recorded import Recorder
from toy import distance, grid

from invfast import Schedule
from invfast.denoiser.conditioned import EMBEDS, Conditioned
from invfast.executors import Captured, Plain
from invfast.integrate import Hooks, integrate
from invfast.methods import (
    DDIM,
    EDICT,
    Direct,
    FixedPoint,
    NegativePrompt,
    NullText,
    Problem,
    PromptTuning,
)
from invfast.reference import ddim, fixed_point
from invfast.reference import tuned as reference

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "set_alpha_to_one": False}
STRICT = {"tolerance": 0.0}
RATE = 0.05


def schedule(steps=6, prediction="epsilon"):
    return Schedule.from_scheduler(DDIMScheduler(**SD, steps_offset=1, prediction_type=prediction), steps)


def network(x, t, encoder_hidden_states):
    """Smooth, and led by the mean and the product of its embeddings; no sample sees another."""
    e = encoder_hidden_states.to(x.dtype)
    first, second, third = e.sin().unbind(1)  # prod(1) takes another way back under a dispatch mode
    shift, gain = e.mean((1, 2)).reshape(-1, 1, 1, 1), (first * second * third).mean(1).reshape(-1, 1, 1, 1)
    phase = torch.ones((), dtype=x.dtype) * t / 200  # without reading the time: it also runs inside a recording
    return 0.5 * x + 0.4 * torch.sin(2 * x + phase + shift) + 0.3 * gain * torch.cos(x)


def embeddings(batch, dtype):
    generator = torch.Generator().manual_seed(11)
    return tuple(torch.randn(batch, 3, 5, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2))


def setting(nodes, x, embeds, scale):
    given = embeds if scale > 1 else embeds[:1]
    problem = Problem(nodes, scale, dtype=x.dtype, embeds=given)
    predict = Conditioned(network, {EMBEDS: torch.cat(given)}, len(x), len(given), x.dtype, True)
    return problem, predict


def inverted(method, nodes, x, embeds):
    """Both passes, as `invert` takes them: x_T and what is kept."""
    problem, predict = setting(nodes, x, embeds, 1.0)
    stepper = method.inverter(problem)
    run = integrate(Plain(stepper, predict), {"latents": x}, nodes, Hooks())
    kept = {name: run.state[name] for name in stepper.keep}
    problem, predict = setting(nodes, x, embeds, method.guidance_scale)
    refiner = method.refiner(problem, nodes.num_steps)
    if refiner:
        refined = integrate(Plain(refiner, predict), run.state, nodes, Hooks()).state
        kept = {name: refined[name] for name in refiner.keep}
        kept["x_0"] = refined["latents"]
    return run.state["latents"], kept, predict


def sampled(method, nodes, x, kept, embeds, scale=None):
    problem, predict = setting(nodes, x, embeds, scale or method.guidance_scale)
    stepper = method.sampler(problem, nodes.num_steps)
    return integrate(Plain(stepper, predict), {"latents": x, **kept}, nodes, Hooks()).state["latents"]


TUNED = {
    "null-text": (NullText(3.0, learning_rate=RATE), "uncond"),
    "null-text, stopping after": (NullText(3.0, learning_rate=RATE, tolerance=0.02, stop="after"), "uncond"),
    "null-text, strict": (NullText(7.5, 4, RATE, **STRICT), "uncond"),
    "prompt tuning": (PromptTuning(3.0, learning_rate=RATE), "cond"),
    "prompt tuning, strict": (PromptTuning(7.5, 4, RATE, **STRICT), "cond"),
}


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("name", TUNED)
def test_equals_its_reference(name, prediction, x0):
    method, which = TUNED[name]
    nodes, x0 = schedule(prediction=prediction), 0.3 * x0
    embeds = embeddings(3, torch.float64)
    x, kept, _ = inverted(method, nodes, x0, embeds)
    back = sampled(method, nodes, x, kept, embeds)
    for j, row in enumerate(x0.split(1)):
        cond, uncond = (e[j : j + 1] for e in embeds)
        way = reference.path(network, row, grid(nodes), prediction, cond)
        settings = {"which": which, "scale": method.guidance_scale, "iterations": method.iterations}
        settings |= {"learning_rate": RATE, "tolerance": method.tolerance, "stop": method.stop}
        wanted, end = reference.tune(network, way, grid(nodes), prediction, cond, uncond, **settings)
        assert distance(x[j], way[-1][0]) < 1e-12
        assert distance(kept["embeds"][j], torch.cat(wanted)) < 1e-10
        assert distance(kept["x_0"][j], end[0]) < 1e-10
        others = [cond if which == "uncond" else uncond] * len(wanted)
        lists = (others, wanted) if which == "uncond" else (wanted, others)
        again = reference.sample(network, way[-1], grid(nodes), prediction, *lists, method.guidance_scale)
        assert distance(back[j], again[0]) < 1e-10


@pytest.mark.parametrize("name", ["null-text", "prompt tuning"])
def test_tuning_brings_guided_sampling_back(name, x0):
    method, nodes = TUNED[name][0], schedule(20)
    x0, embeds = 0.3 * x0, embeddings(3, torch.float64)
    x, kept, _ = inverted(method, nodes, x0, embeds)
    problem, predict = setting(nodes, x, embeds, method.guidance_scale)
    plain = integrate(Plain(DDIM().sampler(problem, 20), predict), {"latents": x}, nodes, Hooks()).state["latents"]
    assert distance(sampled(method, nodes, x, kept, embeds), x0) < 0.5 * distance(plain, x0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", TUNED)
def test_a_batch_equals_its_images_bit_for_bit(name, dtype, x0):
    method, nodes = TUNED[name][0], schedule()
    x0 = torch.stack([x0[0] * 1e-3, x0[1], x0[2] * 0.1]).to(dtype)  # so that they stop at different iterations
    embeds = embeddings(3, dtype)
    x, kept, predict = inverted(method, nodes, x0, embeds)
    for j, row in enumerate(x0.split(1)):
        alone = tuple(e[j : j + 1] for e in embeds)
        one, own, single = inverted(method, nodes, row, alone)
        assert torch.equal(one[0], x[j])
        assert torch.equal(own["embeds"][0], kept["embeds"][j])
        assert single.evaluations[0] == predict.evaluations[j]
    assert predict.samples == sum(predict.evaluations)
    if method.tolerance:
        assert len(set(predict.evaluations)) > 1


def test_cost(x0):
    nodes, embeds = schedule(), embeddings(3, torch.float64)
    _, _, predict = inverted(NullText(7.5, 4, **STRICT), nodes, x0, embeds)
    assert predict.evaluations == [6 * (1 + 4 + 1)] * 3
    _, _, predict = inverted(NullText(7.5, 4, tolerance=1e9), nodes, x0, embeds)
    assert predict.evaluations == [6 * 2] * 3
    _, _, predict = inverted(NullText(7.5, 4, tolerance=1e9, stop="after"), nodes, x0, embeds)
    assert predict.evaluations == [6 * 3] * 3  # the update that followed is looked at


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_negative_prompt_samples_as_without_guidance(prediction, x0):
    nodes, embeds = schedule(prediction=prediction), embeddings(3, torch.float64)
    x, kept, _ = inverted(NegativePrompt(), nodes, x0, embeds)
    wanted = sampled(NegativePrompt(), nodes, x, {}, embeds, scale=1.0)
    assert distance(sampled(NegativePrompt(), nodes, x, kept, embeds), wanted) < 1e-10
    assert distance(sampled(NegativePrompt(), nodes, x, {**kept, "embeds": kept["embeds"] + 1}, embeds), wanted) > 1e-3
    target = (embeds[0] + 0.1, embeds[1])  # an edit still starts from the source's embedding
    edited = sampled(NegativePrompt(), nodes, x, kept, target)
    problem, predict = setting(nodes, x, (target[0], embeds[0]), 7.5)
    plain = integrate(Plain(DDIM().sampler(problem, 6), predict), {"latents": x}, nodes, Hooks()).state["latents"]
    assert distance(edited, plain) < 1e-12


def test_direct_returns_to_the_image_and_leaves_edits_to_the_network(x0):
    nodes, method = schedule(), Direct(method=FixedPoint(2))
    embeds = embeddings(3, torch.float64)
    x, kept, _ = inverted(method, nodes, x0, embeds)
    assert torch.equal(x, inverted(dataclasses.replace(method, guidance_scale=2.0), nodes, x0, embeds)[0])
    assert kept["path"].shape == (3, 6, 4, 5, 6)
    assert torch.equal(kept["path"][:, 0], x0)
    assert distance(sampled(method, nodes, x, kept, embeds), x0) < 1e-14
    twice = tuple(torch.cat([e, e + 0.2]) for e in embeds)
    both = sampled(method, nodes, torch.cat([x, x]), kept, twice)
    assert distance(both[:3], x0) < 1e-14
    problem, predict = setting(nodes, x, tuple(e + 0.2 for e in embeds), 7.5)
    plain = integrate(Plain(DDIM().sampler(problem, 6), predict), {"latents": x}, nodes, Hooks()).state["latents"]
    assert distance(both[3:], plain) < 1e-12


@pytest.mark.parametrize("scale", [0.0, 0.4, 2.5])
def test_the_way_up_under_a_guidance_of_its_own(scale, x0):
    """Any inner method, below 1 and above."""
    nodes, embeds = schedule(), embeddings(3, torch.float64)
    cond, uncond = embeds

    def mixed(x, t):
        without = network(x, t, uncond)
        return without + scale * (network(x, t, cond) - without)

    problem = Problem(nodes, scale, dtype=x0.dtype, embeds=embeds)
    for method, twin in (
        (Direct(inverse_guidance=scale), ddim.invert),
        (NullText(method=FixedPoint(2), inverse_guidance=scale), partial(fixed_point.invert, iterations=2)),
        (Direct(method=FixedPoint(1, warm_start="linear")), partial(fixed_point.invert, iterations=1, history=2)),
    ):
        predict = Conditioned(network, {EMBEDS: torch.cat(embeds)}, 3, 2, x0.dtype, True)
        found = integrate(Plain(method.inverter(problem), predict), {"latents": x0}, nodes, Hooks()).state["latents"]
        assert distance(found, twin(mixed, x0, grid(nodes))) < 1e-10


def tuned_both_ways(method, x0):
    """(state, executor) of the second pass taken plainly and by graphs, and the stand-in for these."""
    nodes, x0, embeds = schedule(), x0.float(), embeddings(3, torch.float32)
    problem, predict = setting(nodes, x0, embeds, 1.0)
    way = integrate(Plain(method.inverter(problem), predict), {"latents": x0}, nodes, Hooks()).state
    found, recorder = [], Recorder()
    for captured in (False, True):
        problem, predict = setting(nodes, x0, embeds, method.guidance_scale)
        stepper = method.refiner(problem, 6)
        take = Captured(stepper, predict, nodes, "cpu", recorder) if captured else Plain(stepper, predict)
        found.append((integrate(take, way, nodes, Hooks()).state, take))
    return *found, recorder


@pytest.mark.parametrize("name", TUNED)
def test_tuning_by_graphs_is_plain_bit_for_bit(name, x0):
    (plain, counted), (captured, recounted), recorder = tuned_both_ways(TUNED[name][0], x0)
    assert all(torch.equal(plain[each], captured[each]) for each in plain)
    assert counted.evaluations == recounted.evaluations
    assert len(recorder.made) == (4 if TUNED[name][0].tolerance else 1)
    calls = {str(function) for graph in recorder.made for function, *_ in graph.calls}
    assert not [call for call in calls if "aten.index.Tensor" in call or "aten.index_put" in call]  # lists to upload


@pytest.mark.parametrize("name", TUNED)
def test_tuning_waits_for_flags_only_where_a_tolerance_asks(name, x0, monkeypatch):
    method, waits = TUNED[name][0], []
    for reads in ("tolist", "item", "__bool__", "__int__", "__float__", "cpu", "numpy"):
        real = getattr(torch.Tensor, reads)
        monkeypatch.setattr(torch.Tensor, reads, lambda x, *a, r=real, n=reads: (waits.append(n), r(x, *a))[1])
    settled = []
    monkeypatch.setattr(Captured, "__call__", _counting(Captured.__call__, waits, settled))
    tuned_both_ways(method, x0)
    replayed = settled[2:]  # later steps: the first was plain, the second recorded and looked at once
    if not method.tolerance:
        assert replayed == [(0, calls) for _, calls in replayed]
    else:
        assert all(reads <= most - 1 for reads, most in replayed)  # one an iteration, none for the other branch


def _counting(call, waits, settled):
    def counted(self, step, state):
        reads, most = len(waits), max(self.evaluations)
        found = call(self, step, state)
        settled.append((len(waits) - reads, max(self.evaluations) - most))
        return found

    return counted


@pytest.mark.parametrize(
    "method",
    [
        NullText(iterations=2),
        PromptTuning(iterations=2),
        NegativePrompt(),
        Direct(),
        Direct(method=FixedPoint(2, tolerance=0.1)),
    ],
)
def test_captured_is_plain_bit_for_bit(method, x0):
    """Upwards and downwards, on the stand-in for CUDA graphs of test_capture."""
    nodes, x0, embeds = schedule(), x0.float(), embeddings(3, torch.float32)
    x, kept, _ = inverted(method, nodes, x0, embeds)
    for make, scale, state in (
        (method.inverter, 1.0, {"latents": x0}),
        (lambda problem: method.sampler(problem, 6), method.guidance_scale, {"latents": x, **kept}),
    ):
        found = []
        for captured in (False, True):
            problem, predict = setting(nodes, x0, embeds, scale)
            stepper = make(problem)
            take = Captured(stepper, predict, nodes, "cpu", Recorder()) if captured else Plain(stepper, predict)
            found.append((integrate(take, state, nodes, Hooks()).state, take))
        assert all(torch.equal(found[0][0][name], found[1][0][name]) for name in found[0][0])
        assert found[0][1].evaluations == found[1][1].evaluations


def test_direct_shows_a_network_that_failed(x0):
    nodes, embeds = schedule(), embeddings(3, torch.float64)
    x, kept, _ = inverted(Direct(), nodes, x0, embeds)
    broken = (embeds[0] * torch.nan, embeds[1])
    with pytest.raises(FloatingPointError, match="step 1 of 6"):
        sampled(Direct(), nodes, x, kept, broken)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (partial(NullText, 1.0), ValueError, "NullText guidance_scale must be a finite number above 1, got 1.0"),
        (partial(NullText, iterations=0), ValueError, "NullText iterations must be an integer of at least 1, got 0"),
        (partial(PromptTuning, learning_rate=0), ValueError, "PromptTuning learning_rate must be a finite number"),
        (partial(PromptTuning, tolerance=-1), ValueError, "PromptTuning tolerance must be a finite number"),
        (partial(NegativePrompt, float("nan")), ValueError, "NegativePrompt guidance_scale"),
        (
            partial(Direct, inverse_guidance=-1),
            ValueError,
            "Direct inverse_guidance must be a finite number of at least",
        ),
        (partial(NullText, stop="now"), ValueError, "unknown NullText stop 'now'"),
        (partial(Direct, method="ddim"), TypeError, "Direct method must be a Method instance, got 'ddim'"),
        (partial(Direct, method=EDICT()), ValueError, "one that plain DDIM sampling undoes, such as DDIM"),
        (partial(NullText, method=NegativePrompt()), ValueError, "one that plain DDIM sampling undoes"),
    ],
)
def test_settings_are_checked(make, error, message):
    with pytest.raises(error, match=message):
        make()
