"""Captured steps against plain ones: a stand-in for CUDA graphs records operations and replays them without Python."""

import gc
import weakref

import pytest
import tiny
import torch
from diffusers import DDIMScheduler
from diffusers.models.resnet import ResnetBlock2D
from recorded import Recorder
from test_methods import TWINS, schedule
from toy import noise_for, predictor

from invfast import Schedule, invert, reconstruct, release, run
from invfast.denoiser import Denoiser
from invfast.executors import Captured, Plain
from invfast.integrate import Hooks, integrate
from invfast.methods import DDIM, FixedPoint, Problem
from invfast.methods.base import Stepper
from invfast.store import READY


def network(x, t, **_):
    """toy.network without reading the time: it must run inside a recording."""
    return 0.5 * x + 0.4 * torch.sin(2 * x + t / 200)


def both(method, x, grid, **hooks):
    """(plain, captured, their executors), in float32, all images in every call."""
    problem = Problem(grid, dtype=x.dtype, draw=lambda shape, seed: noise_for(shape, seed).to(x.dtype))
    runs = []
    for captured in (False, True):
        stepper = method.inverter(problem)
        predict = predictor(len(x), x.dtype, dynamic_batch=False, function=network)
        take = Captured(stepper, predict, grid, "cpu", Recorder()) if captured else Plain(stepper, predict)
        runs += [integrate(take, {"latents": x}, grid, Hooks(**hooks)), take]
    return runs[0], runs[2], runs[1], runs[3]


def same(plain, captured):
    assert set(plain.state) == set(captured.state)
    for name, value in plain.state.items():
        assert torch.equal(captured.state[name], value), name
    assert (plain.residual is None) == (captured.residual is None)
    if plain.residual is not None:
        assert torch.equal(plain.residual, captured.residual)


@pytest.mark.parametrize("name", TWINS)
def test_captured_is_plain_bit_for_bit(name, x0):
    plain, captured, counts, recounted = both(TWINS[name][0], x0.float(), schedule())
    same(plain, captured)
    assert counts.evaluations == recounted.evaluations
    assert counts.samples == recounted.samples


def test_images_that_end_at_different_iterations(x0):
    x = torch.cat([x0, 1e-3 * x0[:1]]).float()
    method = FixedPoint(20, "anderson", "linear", tolerance=1e-4)
    plain, captured, counts, recounted = both(method, x, schedule())
    same(plain, captured)
    assert counts.evaluations == recounted.evaluations
    assert len(set(counts.evaluations)) > 1
    assert counts.samples == recounted.samples  # none after the last image is done


def test_a_phase_is_recorded_once(x0):
    grid = schedule()
    for method, graphs in ((DDIM(), 1), (FixedPoint(2, warm_start="linear"), 1), (FixedPoint(9, tolerance=1e-3), 3)):
        stepper, recorder = method.inverter(Problem(grid)), Recorder()
        predict = predictor(3, torch.float32, dynamic_batch=False, function=network)
        take = Captured(stepper, predict, grid, "cpu", recorder)
        integrate(take, {"latents": x0.float()}, grid, Hooks())
        assert len(recorder.made) == graphs


def test_a_callback_keeps_what_it_saw_and_may_replace_it(x0):
    seen = []

    def on_step(taken, t, state):
        seen.append(state["latents"])
        return {"latents": state["latents"] * 1.5} if taken == 4 else None

    plain, captured, *_ = both(DDIM(), x0.float(), schedule(), on_step=on_step)
    same(plain, captured)
    half = len(seen) // 2
    for a, b in zip(seen[:half], seen[half:], strict=True):
        assert torch.equal(a, b)


def test_an_interrupted_run_ends_where_it_stands(x0):
    asked = iter([False, False, True] * 2)
    plain, captured, *_ = both(DDIM(), x0.float(), schedule(), interrupted=lambda: next(asked))
    same(plain, captured)
    assert captured.steps_taken == 2


def test_trajectories_are_copies(x0):
    plain, captured, *_ = both(FixedPoint(2), x0.float(), schedule(), trajectory=True)
    assert torch.equal(plain.trajectory, captured.trajectory)


def test_the_samplers(x0):
    grid = Schedule.from_scheduler(DDIMScheduler(set_alpha_to_one=False, steps_offset=1), 10)
    stepper = DDIM().sampler(Problem(grid), grid.num_steps)
    found = []
    for captured in (False, True):
        predict = predictor(3, torch.float32, dynamic_batch=False, function=network)
        take = Captured(stepper, predict, grid, "cpu", Recorder()) if captured else Plain(stepper, predict)
        found.append(integrate(take, {"latents": x0.float()}, grid, Hooks()).state["latents"])
    assert torch.equal(*found)


def test_reading_the_device_while_recording_is_noticed(x0):
    class Reads(DDIM):
        def inverter(self, problem, start=0):
            inner = super().inverter(problem, start)

            class Reading(Stepper):
                steps, keep, init = inner.steps, inner.keep, inner.init

                def step(self, step, state, predict):
                    return inner.step(step, {"latents": state["latents"] * float(state["latents"].mean())}, predict)

            return Reading()

    with pytest.raises(AssertionError, match="reads from the device"):
        both(Reads(), x0.float(), schedule())


@pytest.fixture
def graphs(monkeypatch):
    """Pipelines on the CPU captured through the stand-in; yields a list that grows by one a recording."""
    recorder = Recorder()
    monkeypatch.setattr(run, "cuda_graphs", lambda device: recorder)
    monkeypatch.setattr(Denoiser, "uncapturable", None)
    release()
    yield recorder.made
    release()


@pytest.mark.parametrize(
    "method",
    ["ddim", "warm_start", FixedPoint(3, "anderson", tolerance=1e-2), "renoise", "edict", "bdia", "forward_start"],
)
def test_later_calls_replay_the_graphs_of_the_first(method, graphs):
    pipe, settings = tiny.stable_diffusion(), {"method": method, "num_inference_steps": 6, "runtime": "eager"}
    generator = torch.Generator().manual_seed(1)
    latents = [torch.randn(2, 4, 8, 8, generator=generator) for _ in range(2)]
    prompts = [["peach", "cat"], ["coffee", ""]]
    wanted = [invert(pipe, x, p, cuda_graph=False, **settings) for x, p in zip(latents, prompts, strict=True)]
    found, recorded = [], []
    for x, p in zip(latents, prompts, strict=True):
        found.append(invert(pipe, x, p, **settings))
        recorded.append(len(graphs))
    assert recorded[0] > 0
    assert recorded[1] == recorded[0]
    for a, b in zip(wanted, found, strict=True):
        assert torch.equal(a.latents, b.latents)
        assert a.stats.evaluations == b.stats.evaluations
        assert b.stats.cuda_graph
        back = [reconstruct(pipe, b, runtime="eager", cuda_graph=each, output_type="latent") for each in (False, None)]
        assert torch.equal(back[0].latents, back[1].latents)


def test_what_shapes_a_graph_makes_a_new_one(graphs):
    pipe, x = tiny.stable_diffusion(), torch.zeros(1, 4, 8, 8) + 0.5

    def recorded(**changes):
        before = len(graphs)
        inversion = invert(pipe, changes.pop("x", x), **{"num_inference_steps": 4, "runtime": "eager", **changes})
        return inversion, len(graphs) > before

    assert recorded()[1]
    assert not recorded()[1]
    for changes in ({"num_inference_steps": 5}, {"x": x.repeat(2, 1, 1, 1)}, {"precompute": ()}, {"dtype": "bfloat16"}):
        assert recorded(**changes)[1], changes
    assert not recorded()[1]  # those of all were kept
    first = recorded()[0].latents
    with torch.no_grad():
        pipe.unet.conv_out.weight.mul_(2)
    changed, new = recorded()
    assert new
    assert not torch.equal(changed.latents, first)


def test_a_run_that_failed_leaves_no_graph(graphs):
    pipe, x = tiny.stable_diffusion(), torch.zeros(1, 4, 8, 8) + 0.5
    invert(pipe, x, num_inference_steps=4, runtime="eager")
    assert kept()
    with pytest.raises(RuntimeError, match="mine"):
        invert(pipe, x, num_inference_steps=4, runtime="eager", callback_on_step_end=fail)
    assert not kept()


def kept():
    return [key for key in READY.contents() if key[0] == "graphs"]


def fail(pipe, step, t, tensors):
    raise RuntimeError("mine")


def test_one_step_up_is_not_one_step_down(graphs):
    pipe, x = tiny.stable_diffusion(), torch.zeros(1, 4, 8, 8) + 0.5
    found = invert(pipe, x, num_inference_steps=1, runtime="eager")
    back = [reconstruct(pipe, found, runtime="eager", cuda_graph=each, output_type="latent") for each in (None, False)]
    assert torch.equal(back[0].latents, back[1].latents)


def test_embeddings_of_the_caller_stay_the_callers(graphs):
    pipe, x = tiny.stable_diffusion(), torch.zeros(1, 4, 8, 8) + 0.5
    mine, other = torch.randn(2, 1, 12, 32, generator=torch.Generator().manual_seed(1))
    before = mine.clone()
    settings = {"num_inference_steps": 4, "runtime": "eager", "precompute": ()}
    invert(pipe, x, None, prompt_embeds=mine, **settings)
    found = invert(pipe, x, None, prompt_embeds=other, **settings)
    assert torch.equal(mine, before)
    assert torch.equal(found.latents, invert(pipe, x, None, prompt_embeds=other, cuda_graph=False, **settings).latents)


def test_weights_that_moved_make_a_new_one(graphs):
    pipe, x, settings = tiny.stable_diffusion(), torch.zeros(1, 4, 8, 8) + 0.5, {"num_inference_steps": 4}
    invert(pipe, x, runtime="eager", **settings)
    pipe.unet.to(torch.float64).to(torch.float32)  # the same values, elsewhere
    before = len(graphs)
    invert(pipe, x, runtime="eager", **settings)
    assert len(graphs) > before


@pytest.mark.slow
def test_other_kernels_and_patched_classes_make_a_new_one(graphs, monkeypatch):
    pipe, settings = tiny.stable_diffusion(), {"num_inference_steps": 4, "runtime": "eager"}
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))

    def recorded():
        before = len(graphs)
        found = invert(pipe, x, **settings).latents
        assert torch.equal(found, invert(pipe, x, cuda_graph=False, **settings).latents)
        return len(graphs) > before

    assert [recorded(), recorded()] == [True, False]
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        assert recorded()
    own = ResnetBlock2D.forward
    with monkeypatch.context() as patch:
        patch.setattr(ResnetBlock2D, "forward", lambda self, x, temb: own(self, x, temb) * 0.99)
        assert recorded()
    real = torch.nn.functional.scaled_dot_product_attention
    with monkeypatch.context() as patch:
        patch.setattr("torch.nn.functional.scaled_dot_product_attention", lambda *a, **k: real(*a, **k) * 0.99)
        assert recorded()
    assert not recorded()


@pytest.mark.parametrize("method", ["renoise", "ddim", "forward_start", "null_text"])
def test_kept_graphs_do_not_keep_their_pipeline(method, graphs):
    pipe, settings = tiny.stable_diffusion(), {"num_inference_steps": 8, "runtime": "eager", "method": method}
    invert(pipe, torch.zeros(1, 4, 8, 8) + 0.5, **settings)
    assert kept()
    unet = weakref.ref(pipe.unet)
    del pipe
    gc.collect()
    assert unet() is None
    assert not kept()


def test_another_pipeline_of_equal_weights_has_its_own(graphs):
    (first, second), x = (tiny.stable_diffusion() for _ in range(2)), torch.zeros(1, 4, 8, 8) + 0.5
    invert(first, x, num_inference_steps=4, runtime="eager")
    with torch.no_grad():
        first.unet.conv_out.bias.add_(1)  # shared with the kept network; weights in another layout are copies
    found, plain = (
        invert(second, x, num_inference_steps=4, runtime="eager", cuda_graph=each) for each in (None, False)
    )
    assert torch.equal(found.latents, plain.latents)


def test_a_run_within_anothers_callback_leaves_it_alone(graphs):
    pipe, settings = tiny.stable_diffusion(), {"num_inference_steps": 4, "runtime": "eager"}
    x, y = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    wanted = {name: invert(pipe, z, cuda_graph=False, **settings).latents for name, z in (("x", x), ("y", y))}
    inner = []

    def callback(pipe, step, t, tensors):
        inner.append(invert(pipe, y, "cat", **settings).latents)

    assert torch.equal(invert(pipe, x, callback_on_step_end=callback, **settings).latents, wanted["x"])
    assert len(inner) == 4
    assert torch.equal(invert(pipe, y, **settings).latents, wanted["y"])


def test_what_cannot_be_captured_says_so(graphs):
    pipe, x = tiny.stable_diffusion(), torch.zeros(1, 4, 8, 8) + 0.5
    one = {"method": "ddim", "num_inference_steps": 1, "runtime": "eager"}
    assert not invert(pipe, x, **one).stats.cuda_graph
    with pytest.raises(ValueError, match="DDIM has no 3 steps on this grid that launch the same work"):
        invert(pipe, x, cuda_graph=True, **one)
    assert not graphs
