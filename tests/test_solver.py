"""DPM-Solver++(2M): steps are diffusers', the inversion its long-hand twin's, and the pipeline's own call undoes it."""

import warnings

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from recorded import Recorder
from tiny import stable_diffusion
from toy import distance, network, predictor, rewritten, run, sample

from invfast import Inversion, Schedule, grids, invert, reconstruct
from invfast.demo.reparametrised import as_flow
from invfast.executors import Captured, Plain
from invfast.integrate import Hooks, integrate
from invfast.methods import DDIM, DPMSolver, FixedPoint, ForwardStart, Problem
from invfast.reference import solver
from invfast.schedule import FLOW

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
NAME = "DPMSolverMultistepScheduler"
CONFIGS = {
    "default": {},
    "leading": {"timestep_spacing": "leading", "steps_offset": 1},
    "trailing": {"timestep_spacing": "trailing"},
    "karras": {"use_karras_sigmas": True},
    "lu": {"use_lu_lambdas": True},
    "sigma_min": {"final_sigmas_type": "sigma_min"},
    "euler at final": {"euler_at_final": True},
}


def scheduler(prediction="epsilon", **config):
    return DPMSolverMultistepScheduler(**SD, prediction_type=prediction, **config)


def schedule(steps=12, prediction="epsilon", **config):
    return Schedule.from_scheduler(scheduler(prediction, **config), steps, sampler=NAME)


def levels(nodes):
    return list(zip(nodes.alpha.tolist(), nodes.sigma.tolist(), strict=True))


def own_call(theirs, steps, x, function=network):
    """diffusers' steps in float64: its levels are float32 numbers, and read as they are."""
    theirs.set_timesteps(steps)
    theirs.sigmas = theirs.sigmas.double()
    path = [x]
    for t in theirs.timesteps:
        step = theirs.step
        x = _in_float64(step, function(x, t), t, x)
        path.append(x)
    return path


def _in_float64(step, output, t, x):
    """`step` says x.to(torch.float32); the copy that it takes here refuses to."""
    return step(output, t, x.as_subclass(Wide)).prev_sample.as_subclass(torch.Tensor)


class Wide(torch.Tensor):
    def to(self, *args, **kwargs):
        return self


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("steps", [1, 2, 3, 14, 15, 20])
@pytest.mark.parametrize("name", CONFIGS)
def test_sampling_is_diffusers(name, steps, prediction, x0):
    config = CONFIGS[name]
    if prediction == "sample" and config.get("final_sigmas_type") is None:
        with pytest.raises(ValueError, match="sample prediction cannot be inverted"):
            schedule(steps, prediction, **config)
        return
    nodes = schedule(steps, prediction, **config)
    assert nodes.origin["grid"] == f"diffusers {NAME}"
    found, wanted = sample(DPMSolver(), nodes, x0), own_call(scheduler(prediction, **config), steps, x0)
    assert distance(found, wanted[-1]) < 1e-10
    assert distance(solver.sample(network, x0, nodes.t[1:].tolist(), levels(nodes), prediction), wanted[-1]) < 1e-10


def test_every_step_is_diffusers(x0):
    nodes = schedule(16)
    seen = []
    stepper = DPMSolver().sampler(Problem(nodes, dtype=x0.dtype), 16)
    hooks = Hooks(lambda i, t, tensors: seen.append(tensors["latents"]))
    integrate(Plain(stepper, predictor(3)), {"latents": x0}, nodes, hooks)
    for found, wanted in zip(seen, own_call(scheduler(), 16, x0)[1:], strict=True):
        assert distance(found, wanted) < 1e-10


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(("steps", "config"), [(12, "karras"), (16, "sigma_min"), (20, "default"), (5, "karras")])
def test_equals_its_reference(steps, config, prediction, x0):
    nodes = schedule(steps, prediction, **CONFIGS[config])
    given = nodes.t[1:].tolist(), levels(nodes), prediction
    for settings in ({}, {"tolerance": 1e-6, "iterations": 7}, {"tolerance": 0, "iterations": 3}):
        wanted = torch.cat([solver.invert(network, x, *given, **settings) for x in x0.split(1)])
        assert distance(run(DPMSolver(**settings), nodes, x0).state["latents"], wanted) < 1e-8
    assert distance(run(DPMSolver(), nodes, x0.float()).state["latents"], wanted) < 0.05


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_batch_equals_its_images_bit_for_bit(dtype, x0):
    nodes, x0 = schedule(**CONFIGS["karras"]), torch.stack([x0[0] * 0.1, x0[1], x0[2] * 3]).to(dtype)
    predict = predictor(3, dtype)
    together = run(DPMSolver(), nodes, x0, predict).state["latents"]
    assert len(set(predict.evaluations)) > 1
    for j, row in enumerate(x0.split(1)):
        assert torch.equal(run(DPMSolver(), nodes, row, predictor(1, dtype)).state["latents"][0], together[j])


def test_the_way_a_network_writes_its_output_changes_nothing(x0):
    found = [
        run(DPMSolver(1e-9, 40), nodes, x0, predictor(3, function=rewritten(nodes))).state["latents"]
        for nodes in (schedule(16, kind, **CONFIGS["sigma_min"]) for kind in ("epsilon", "v_prediction", "sample"))
    ]
    assert distance(found[1], found[0]) < 1e-7
    assert distance(found[2], found[0]) < 1e-7


def test_it_finds_the_noise_of_its_sampler_and_ddim_does_not(x0):
    """On a smooth network: by far nearer than a first-order inversion on the same grid, solved to the end."""
    nodes = schedule(20, **CONFIGS["karras"])
    x = sample(DPMSolver(), nodes, x0)
    own, first, plain = (
        distance(run(each, nodes, x).state["latents"], x0)
        for each in (DPMSolver(1e-8, 60), FixedPoint(60, "anderson", tolerance=1e-10), DDIM())
    )
    assert own < first / 5
    assert own < plain / 5


def test_a_flow_is_sampled_as_diffusers_does(x0):
    config = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
    theirs = DPMSolverMultistepScheduler(**config)
    nodes = Schedule.from_scheduler(theirs, 17, sampler=NAME)
    assert nodes.prediction_type == FLOW
    assert distance(sample(DPMSolver(), nodes, x0), own_call(theirs, 17, x0)[-1]) < 1e-10
    x = sample(DPMSolver(), nodes, x0)
    own, first = (
        distance(run(each, nodes, x).state["latents"], x0)
        for each in (DPMSolver(1e-8, 60), FixedPoint(60, "anderson", tolerance=1e-10))
    )
    assert own < first


def test_at_zero_terminal_snr(x0):
    config = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    nodes = schedule(10, "v_prediction", **config)
    assert run(DPMSolver(), nodes, x0).state["latents"].isfinite().all()
    assert run(DPMSolver(), as_flow(schedule(10)), x0).state["latents"].isfinite().all()


def test_behind_a_jump_and_from_a_node_on_the_way(x0):
    nodes, asked = schedule(**CONFIGS["karras"]), iter([False] * 5 + [True])
    assert ForwardStart(3, DPMSolver()).own_sampler == NAME
    assert run(ForwardStart(3, DPMSolver()), nodes, x0).state["latents"].isfinite().all()
    found = run(DPMSolver(1e-8, 60), nodes, x0, interrupted=lambda: next(asked))
    stepper = DPMSolver().sampler(Problem(nodes, dtype=x0.dtype), 5)
    back = integrate(Plain(stepper, predictor(3)), found.state, nodes, Hooks()).state["latents"]
    assert distance(back, x0) < 0.1  # begun anew, by a step of first order


def test_steps_are_captured(x0):
    nodes = schedule(20, **CONFIGS["karras"])
    x0 = x0.float()
    for make in (DPMSolver().inverter, lambda problem: DPMSolver().sampler(problem, 20)):
        takes = [Plain(make(Problem(nodes)), captured_predictor())]
        takes += [Captured(make(Problem(nodes)), captured_predictor(), nodes, "cpu", Recorder())]
        plain, found = (integrate(take, {"latents": x0}, nodes, Hooks()).state["latents"] for take in takes)
        assert torch.equal(plain, found)
        assert takes[1].graphs


def captured_predictor():
    return predictor(3, torch.float32, function=lambda x, t, **_: 0.5 * x + 0.4 * torch.sin(2 * x + t / 200))


def test_the_grid_is_the_pipelines_own_and_is_not_warned_of():
    grids._told.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        pipe = stable_diffusion(scheduler(steps_offset=1, **CONFIGS["karras"]))
        x = torch.randn(1, 4, 6, 6, generator=torch.Generator().manual_seed(0))
        found = invert(pipe, x, method="dpm_solver", num_inference_steps=6, dtype="float64")
    pipe.scheduler.set_timesteps(6)
    assert found.schedule.t[1:].tolist() == pipe.scheduler.timesteps.tolist()[::-1]
    with pytest.warns(UserWarning, match=f"samples by DDIMScheduler; .* {NAME}.from_config"):
        invert(stable_diffusion(), x, method="dpm_solver", num_inference_steps=4)
    with pytest.warns(UserWarning, match=f"samples by {NAME}; inversion and"):
        invert(pipe, x, method="ddim", num_inference_steps=4)


def test_the_pipelines_own_call_regenerates_the_image(tmp_path):
    """What `reconstruct` makes of the noise, its own call makes too."""
    pipe = stable_diffusion(scheduler(steps_offset=1, **CONFIGS["karras"]))
    x = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    found = invert(pipe, x, ["a", "b"], method=DPMSolver(1e-6, 60), num_inference_steps=8)
    back = reconstruct(pipe, found, output_type="latent").latents
    given = {"num_inference_steps": 8, "guidance_scale": 1.0, "output_type": "latent"}
    own = pipe(["a", "b"], latents=found.latents, **given).images
    assert distance(back, own) < 1e-4
    assert distance(own, x) < 0.2
    found.save(tmp_path / "x")
    again = Inversion.load(tmp_path / "x")
    assert again == found
    assert distance(reconstruct(pipe, again, output_type="latent").latents, back) < 1e-5


@pytest.mark.parametrize(
    ("config", "steps", "message"),
    [
        (
            {"algorithm_type": "sde-dpmsolver++"},
            20,
            r"algorithm_type='sde-dpmsolver\+\+': set it to",
        ),
        ({"solver_order": 3}, 20, "solver_order=3: set it to 2"),
        ({"solver_type": "heun"}, 20, "solver_type='heun': set it to 'midpoint'"),
        ({"thresholding": True}, 20, "thresholding=True: set it to False"),
        ({"final_sigmas_type": "sigma_min", "euler_at_final": True}, 20, "euler_at_final=True"),
        ({"final_sigmas_type": "sigma_min", "lower_order_final": False}, 9, "lower_order_final=False on fewer than 15"),
        ({"use_karras_sigmas": True}, 50, "50 steps of .* ask the network twice at one time"),
    ],
)
def test_other_steps_are_refused(config, steps, message):
    with pytest.raises(ValueError, match=message):
        schedule(steps, **config)


def test_refusals():
    for settings, message in (({"tolerance": 1}, "tolerance must lie in"), ({"iterations": 0}, "of at least 1, got 0")):
        with pytest.raises(ValueError, match=message):
            DPMSolver(**settings)
    with pytest.raises(ValueError, match="unknown sampler 'Heun'; expected None or"):
        Schedule.from_scheduler(DDIMScheduler(), 4, sampler="Heun")
    with pytest.raises(ValueError, match="compat='diffusers' is for DDIM's grid"):
        Schedule.from_scheduler(DDIMScheduler(), 4, sampler=NAME, compat="diffusers")
    with pytest.raises(ValueError, match="samples by FlowMatchEulerDiscreteScheduler; give it"):
        Schedule.from_scheduler(FlowMatchEulerDiscreteScheduler(), 4, sampler=NAME)
    nodes = Schedule.from_scheduler(EulerDiscreteScheduler(**SD), timesteps=[900, 500, 100], sampler=NAME)
    assert nodes.t.tolist() == [0, 100, 500, 900]
