"""Reversible samplers and noise maps: the way back is exact, from every node, under guidance, on disk."""

from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler
from recorded import Recorder
from tiny import QUICK
from toy import distance, grid, network, noise_for, predictor, rewritten, run

from invfast import Inversion, Schedule, invert, reconstruct
from invfast.denoiser.predictor import Predictor
from invfast.executors import Captured, Plain
from invfast.integrate import Hooks, integrate
from invfast.methods import BDIA, DDIM, EDICT, OBELM, ForwardStart, NoiseMaps, Problem
from invfast.reference import ddim, noise_maps, reversible
from invfast.stored import check_shapes

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
METHODS = [
    EDICT(),
    EDICT(alternate=False),
    BDIA(),
    BDIA(0.9, "source"),
    OBELM(),
    OBELM("source"),
    NoiseMaps(),
    NoiseMaps(eta=0.3),
]
PREDICTIONS = ["epsilon", "v_prediction", "sample"]


def schedule(steps=12, prediction="epsilon", **config):
    config = {"set_alpha_to_one": False, "steps_offset": 1, "prediction_type": prediction, **config}
    return Schedule.from_scheduler(DDIMScheduler(**SD, **config), steps)


def kept(method, nodes, found):
    """What an inversion hands to its sampler."""
    names = method.inverter(Problem(nodes)).keep
    return {name: found.state[name] for name in ("latents", *names) if name in found.state}


def back(method, nodes, state, node=None, predict=None, scale=1.0, take=None):
    x = state["latents"]
    stepper = method.sampler(Problem(nodes, scale, dtype=x.dtype), nodes.num_steps if node is None else node)
    predict = predict or predictor(len(x), x.dtype)
    return integrate((take or Plain)(stepper, predict), state, nodes, Hooks()).state["latents"]


@pytest.mark.parametrize("steps", [1, 2, 3, 20, 50])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_the_way_back_is_exact(method, prediction, steps, x0):
    nodes = schedule(steps, prediction)
    function = rewritten(nodes)
    found = run(method, nodes, x0, predictor(3, function=function))
    predict = predictor(3, function=function)
    assert distance(back(method, nodes, kept(method, nodes, found), predict=predict), x0) < 1e-10
    each = {EDICT: 2 * steps, NoiseMaps: steps}.get(type(method), steps - 1)
    assert predict.evaluations == [each] * 3


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_in_float32_rounding_is_all_that_is_left(method, x0):
    nodes = schedule(50)
    found = run(method, nodes, x0.float())
    assert 0 < distance(back(method, nodes, kept(method, nodes, found)), x0) < 1e-5


@pytest.mark.parametrize("node", [0, 1, 2, 7])
@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_an_interrupted_run_is_resumed_from_its_node(method, node, x0):
    nodes, asked = schedule(), iter([False] * node + [True])
    found = run(method, nodes, x0, interrupted=lambda: next(asked))
    assert found.steps_taken == node
    assert distance(back(method, nodes, kept(method, nodes, found), node), x0) < 1e-10


@pytest.mark.parametrize("method", [EDICT(), BDIA(), OBELM()], ids=repr)
def test_behind_a_jump_the_way_back_reaches_its_latent(method, x0):
    """And below it, sampling goes on; also where the run was interrupted before its first step."""
    nodes, jumped = schedule(), ForwardStart(3, method)
    found = run(jumped, nodes, x0, trajectory=True)
    stepper = jumped.sampler(Problem(nodes, dtype=x0.dtype), nodes.num_steps)
    stepper.steps = range(nodes.num_steps - 1, 2, -1)
    landed = integrate(Plain(stepper, predictor(3)), kept(jumped, nodes, found), nodes, Hooks()).state["latents"]
    assert distance(landed, found.trajectory[0]) < 1e-10
    assert back(jumped, nodes, kept(jumped, nodes, found)).isfinite().all()
    none = run(jumped, nodes, x0, interrupted=lambda: True)
    plain = ddim.sample(network, found.trajectory[0], grid(nodes)[:3])
    assert distance(back(jumped, nodes, kept(jumped, nodes, none), 3), plain) < 0.5


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_samplers_equal_their_references(prediction, x0):
    """From states that no inversion made, so that an error of both ways cannot cancel."""
    nodes = schedule(prediction=prediction)
    path, function = grid(nodes), rewritten(nodes)
    x, other = x0, 0.9 * x0 + 0.1 * x0.flip(0)

    def found(method, **state):
        return back(method, nodes, {"latents": x, **state}, predict=predictor(3, function=function))

    pair = reversible.edict_sample(function, x, other, path, prediction)
    assert distance(found(EDICT(), partner=other), pair[0]) < 1e-10
    wanted = reversible.bdia_sample(function, x, other, path, prediction, gamma=0.8)
    assert distance(found(BDIA(0.8), previous=other), wanted) < 1e-10
    ratio = nodes.sigma / nodes.alpha
    slope = (x / nodes.alpha[-1] - other / nodes.alpha[-2]) / (ratio[-1] - ratio[-2])
    wanted = reversible.obelm_sample(function, x, other, path, prediction)
    assert distance(found(OBELM(), slope=slope), wanted) < 1e-10
    maps = noise_for((3, nodes.num_steps, *x.shape[1:]), 5).double()
    wanted = noise_maps.sample(function, x, maps, path, prediction, eta=0.7)
    assert distance(found(NoiseMaps(0.7), maps=maps), wanted) < 1e-10


@pytest.mark.parametrize("alternate", [True, False])
@pytest.mark.parametrize("steps", [1, 2, 11, 12])
@pytest.mark.parametrize("offset", [0, 1])
def test_edict_ends_with_x_and_its_partner(offset, steps, alternate, x0):
    """On any number of steps; the step that moves nothing at steps_offset=0 mixes the pair once more."""
    nodes = schedule(steps + 1 - offset, steps_offset=offset)
    abar = float(nodes.alpha[0] ** 2)
    whole = [(0, abar, abar)] * nodes.dropped + grid(nodes)
    x, y = x0, 0.9 * x0 + 0.1 * x0.flip(0)
    stepper = EDICT(alternate=alternate).sampler(Problem(nodes, dtype=x.dtype), nodes.num_steps)
    state = integrate(Plain(stepper, predictor(3)), {"latents": x, "partner": y}, nodes, Hooks()).state
    wanted = reversible.edict_sample(network, x, y, whole, alternate=alternate)
    assert distance(state["latents"], wanted[0]) < 1e-10
    assert distance(state["partner"], wanted[1]) < 1e-10
    found = run(EDICT(alternate=alternate), nodes, x0).state
    wanted = reversible.edict_invert(network, x0, whole, alternate=alternate)
    assert distance(found["latents"], wanted[0]) < 1e-10
    assert distance(found["partner"], wanted[1]) < 1e-10


def test_what_is_kept_equals_its_reference(x0):
    nodes = schedule()
    path = grid(nodes)
    assert distance(run(EDICT(), nodes, x0).state["partner"], reversible.edict_invert(network, x0, path)[1]) < 1e-10
    assert distance(run(BDIA(), nodes, x0).state["previous"], reversible.bdia_invert(network, x0, path)[1]) < 1e-10
    for eta in (1.0, 0.4):
        noise = noise_for((3, len(path), *x0.shape[1:]), 2).double()
        _, maps = noise_maps.invert(network, x0, path, noise=noise, eta=eta)
        assert distance(run(NoiseMaps(eta, seed=2), nodes, x0).state["maps"], maps) < 1e-10


@pytest.mark.parametrize("steps", [1, 2, 12])
def test_noise_without_a_pair_begins_with_a_ddim_step(steps, x0):
    nodes = schedule(steps)
    path = grid(nodes)
    before = ddim.sample(network, x0, path[-1:])
    for method, twin in ((BDIA(), reversible.bdia_sample), (OBELM(), reversible.obelm_sample)):
        predict = predictor(3)
        assert distance(back(method, nodes, {"latents": x0}, predict=predict), twin(network, x0, before, path)) < 1e-10
        assert predict.evaluations == [steps] * 3
    with pytest.raises(ValueError, match=r"expected state 'maps' of shape \(3, 2, 4, 5, 6\), got none"):
        back(NoiseMaps(), schedule(2), {"latents": x0})


def test_zero_terminal_snr(x0):
    config = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    nodes = schedule(10, "v_prediction", **config)
    for method in (EDICT(), BDIA(), NoiseMaps()):
        found = run(method, nodes, x0)
        assert found.state["latents"].isfinite().all()
        assert distance(back(method, nodes, kept(method, nodes, found)), x0) < 1e-10
    with pytest.raises(ValueError, match=r"O-BELM divides by alpha, which is 0 at t=999 .*use BDIA"):
        run(OBELM(), nodes, x0)


def test_maps_end_at_clean_data_too(x0):
    nodes = schedule(set_alpha_to_one=True)
    assert nodes.alpha[0] == 1
    for method in METHODS:
        found = run(method, nodes, x0)
        assert distance(back(method, nodes, kept(method, nodes, found)), x0) < 1e-10


@pytest.mark.parametrize("name", ["bdia", "obelm", "noise_maps"])
def test_grids_that_do_not_join_are_refused(name, x0):
    scheduler = DDIMScheduler(**SD, set_alpha_to_one=False, timestep_spacing="linspace")
    broken = Schedule.from_scheduler(scheduler, 30, compat="diffusers")
    method = {"bdia": BDIA(), "obelm": OBELM(), "noise_maps": NoiseMaps()}[name]
    with pytest.raises(ValueError, match=r"steps that begin where the last one ended.*leave compat out"):
        run(method, broken, x0)
    found = run(EDICT(), broken, x0)  # undoes each step by itself
    assert distance(back(EDICT(), broken, kept(EDICT(), broken, found)), x0) < 1e-10


def conditioned(x, t, shift):
    """toy.network under a condition, with one time or a time a row."""
    return 0.5 * x + 0.4 * torch.sin(2 * x + torch.as_tensor(t).reshape(-1, 1, 1, 1) / 200) + shift


def guided(batched=False, calls=None):
    def function(x, t, shift):
        if calls is not None:
            calls.append(len(x))
        return conditioned(x, t, shift)

    shift = torch.linspace(-0.2, 0.3, 6, dtype=torch.float64).reshape(6, 1, 1, 1)
    return Predictor(function, {"shift": shift}, 3, 2, torch.float64, True, batched_time=batched)


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_the_way_back_is_exact_under_guidance(method, x0):
    nodes = schedule()
    problem = Problem(nodes, 3.0, dtype=x0.dtype, draw=lambda shape, seed: noise_for(shape, seed).double())
    found = integrate(Plain(method.inverter(problem), guided()), {"latents": x0}, nodes, Hooks())
    state = kept(method, nodes, found)
    assert distance(back(method, nodes, state, predict=guided(), scale=3.0), x0) < 1e-10
    assert distance(back(method, nodes, state), x0) > 1e-2


@pytest.mark.parametrize("chunk", [1, 5, 12, 1000])
def test_many_times_in_one_call(chunk, x0):
    """Nothing changes but the number of calls, and every sample is counted."""
    nodes = schedule()
    problem = Problem(nodes, 3.0, dtype=x0.dtype, draw=lambda shape, seed: noise_for(shape, seed).double())
    states = []
    for batched in (False, True):
        calls = []
        predict = guided(batched, calls)
        stepper = NoiseMaps(chunk=chunk).inverter(problem)
        states.append(integrate(Plain(stepper, predict), {"latents": x0}, nodes, Hooks()).state)
        assert predict.evaluations == [12] * 3
        assert predict.samples == sum(calls) == 2 * 3 * 12
        assert max(calls) == (6 * min(12, max(1, chunk // 3)) if batched else 6)
    for name in ("latents", "maps"):
        assert distance(states[1][name], states[0][name]) < 1e-14


def test_the_nodes_of_noise_maps_share_no_noise():
    x, nodes = torch.zeros(1, 4, 32, 32, dtype=torch.float64), schedule(6)
    found = run(NoiseMaps(), nodes, x, trajectory=True)
    noises = (found.trajectory[1:] / nodes.sigma[1:].reshape(-1, 1, 1, 1, 1)).flatten(1)
    assert (torch.corrcoef(noises) - torch.eye(6)).abs().max() < 0.08  # five deviations of 4,096 pairs
    assert (noises.std(1) - 1).abs().max() < 0.06


def test_an_output_that_is_not_finite_is_noticed_in_noise_maps(x0):
    nodes = schedule()

    def broken(x, t, **_):
        out = network(x, t)
        if t == nodes.t[4]:
            out[1] = torch.inf
        return out

    with pytest.raises(FloatingPointError, match=r"non-finite at step 4 of 12 .* in image 2 of 3"):
        run(NoiseMaps(), nodes, x0, predictor(3, function=broken))


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_captured_samplers_are_plain_bit_for_bit(method, x0):
    def on_device(x, t, **_):
        return 0.5 * x + 0.4 * torch.sin(2 * x + t / 200)

    nodes = schedule()
    state = kept(method, nodes, run(method, nodes, x0.float()))

    def captured(stepper, predict):
        return Captured(stepper, predict, nodes, "cpu", Recorder())

    found = [
        back(method, nodes, state, predict=predictor(3, torch.float32, function=on_device), take=take)
        for take in (None, captured)
    ]
    assert torch.equal(*found)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EDICT(0), r"EDICT p must lie in \(0, 1\], got 0"),
        (lambda: EDICT("a"), "EDICT p must lie"),
        (lambda: BDIA(1.5), r"BDIA gamma must lie in \(0, 1\], got 1.5"),
        (lambda: BDIA(float("nan")), "got nan"),
        (lambda: NoiseMaps(0), r"NoiseMaps eta must lie in \(0, 1\], got 0"),
        (lambda: NoiseMaps(chunk=0), "NoiseMaps chunk must be an integer of at least 1, got 0"),
        (lambda: run(ForwardStart(2, NoiseMaps()), schedule(), torch.zeros(1, 4, 2, 2)), "use it without ForwardStart"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("method", [EDICT(), BDIA(), OBELM(), NoiseMaps()], ids=repr)
def test_the_bundled_model_reconstructs_exactly(method, pipe, peach):
    for dtype, tolerance in (("float64", 1e-10), ("float32", 1e-4)):
        inv = invert(pipe, peach, "noto peach", method=method, num_inference_steps=3, dtype=dtype)
        latents = reconstruct(pipe, inv, output_type="latent", dtype=dtype).latents
        assert latents.dtype == inv.latents.dtype
        assert distance(latents, inv.init_latents) < tolerance
    plain = reconstruct(pipe, replace(inv, method=DDIM(), state={}), output_type="latent").latents
    assert distance(plain, inv.init_latents) > 1e-3  # the sampler is what makes it exact


def test_several_latents_an_image_on_disk_and_by_image(tiny, samples, tmp_path):
    images = [samples[n].image for n in ("peach", "cat")]
    inv = invert(tiny, images, method=NoiseMaps(), dtype="float64", **QUICK)
    assert inv.state["maps"].shape == (2, 4, *inv.latents.shape[1:])
    inv.save(tmp_path / "x")
    loaded = Inversion.load(tmp_path / "x")
    assert torch.equal(loaded.state["maps"], inv.state["maps"])
    cat = reconstruct(tiny, loaded[1], output_type="latent", dtype="float64").latents
    assert distance(cat, inv.init_latents[1:]) < 1e-10
    for wrong in (inv.state["maps"][:1], inv.state["maps"][..., :1], inv.state["maps"].half()):
        with pytest.raises(ValueError, match="maps is"):
            check_shapes(replace(inv, state={"maps": wrong}))
    with pytest.raises(ValueError, match=r"expected state 'maps' of shape \(2, 4, 4, 8, 8\), got \(2, 3, 4, 8, 8\)"):
        reconstruct(tiny, replace(inv, state={"maps": inv.state["maps"][:, :3]}))
