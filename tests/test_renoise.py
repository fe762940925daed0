"""ReNoise and GNRI against their long-hand twins; what the regularisation does, and on what it must not fail."""

import dataclasses
from functools import partial

import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image
from toy import distance, grid, network, noise_for, predictor, rewritten, run

from invfast import Schedule, invert, metrics, reconstruct
from invfast.methods import DDIM, GNRI, FixedPoint, ForwardStart, ReNoise, from_dict, to_dict
from invfast.methods.whiten import VARIANCE_FLOOR, Whitener, draws, patch_gradient, roll_gradient
from invfast.reference import ddim
from invfast.reference import renoise as reference

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "set_alpha_to_one": False}
PLAIN = {"lambda_kl": 0.0, "lambda_ac": 0.0}
MILD = {"lambda_kl": 0.02, "lambda_ac": 2.0}


def schedule(steps=12, prediction="epsilon", **config):
    return Schedule.from_scheduler(
        DDIMScheduler(**{**SD, "steps_offset": 1, "prediction_type": prediction, **config}), steps
    )


def twin(function, model, x, nodes, prediction="epsilon", seed=7865, channels=None, **settings):
    """The reference over a batch, image by image, with the noise and shifts that the method draws."""
    noise = noise_for(x.shape, seed).to(x.dtype)
    calls = settings["iterations"] + 2
    out = []
    for row, n in zip(x.split(1), noise.split(1), strict=True):
        shifts = draws(len(nodes), calls, channels)
        extra = {"noise": n, "uniform": shifts} if function is reference.invert else {}
        out.append(function(model, row, nodes, prediction, **settings, **extra))
    return torch.cat(out)


CASES = {
    "plain 1": (ReNoise(1, **PLAIN), {"iterations": 1}),
    "plain 9": (ReNoise(9, **PLAIN), {"iterations": 9}),
    "plain 6, other windows": (
        ReNoise(6, **PLAIN, early_window=(1, 3), late_window=(4, 9)),
        {"iterations": 6, "early": (1, 3), "late": (4, 9)},
    ),
    "kl": (ReNoise(2, 0.02, 0.0), {"iterations": 2, "lambda_kl": 0.02}),
    "ac": (ReNoise(2, 0.0, 2.0), {"iterations": 2, "lambda_ac": 2.0}),
    "both": (
        ReNoise(3, **MILD, early_window=(0, 2), late_window=(2, 4)),
        {"iterations": 3, **MILD, "early": (0, 2), "late": (2, 4)},
    ),
    "published": (ReNoise(), {"iterations": 1, "lambda_kl": 0.065, "lambda_ac": 20.0}),
    "the last iterate": (ReNoise(2, **MILD, average=False), {"iterations": 2, **MILD, "average": False}),
    "the last iterate, plain": (ReNoise(9, **PLAIN, average=False), {"iterations": 9, "average": False}),
    "capped": (ReNoise(9, **PLAIN, first_iterations=3), {"iterations": 9, "first_iterations": 3}),
    "shifts by channel": (ReNoise(2, 0.0, 2.0, shifts="channel"), {"iterations": 2, "lambda_ac": 2.0, "channels": 4}),
}


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("name", CASES)
def test_equals_its_reference(name, prediction, x0):
    method, settings = CASES[name]
    nodes = schedule(prediction=prediction)
    found = run(method, nodes, x0).state["latents"]
    assert distance(found, twin(reference.invert, network, x0, grid(nodes), prediction, **settings)) < 1e-10


@pytest.mark.parametrize("name", CASES)
def test_a_step_in_float32(name, x0):
    method, settings = CASES[name]
    for t in (1, 500):
        nodes = Schedule.from_scheduler(DDIMScheduler(**SD, steps_offset=1), timesteps=[t])
        wanted = twin(reference.invert, network, x0, grid(nodes), **settings)
        assert distance(run(method, nodes, x0.float()).state["latents"], wanted) < 1e-5


@pytest.mark.parametrize("prior", [0.0, 0.1])
@pytest.mark.parametrize("iterations", [1, 2, 5])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_gnri_equals_its_reference(prediction, iterations, prior, x0):
    nodes = schedule(prediction=prediction)
    settings = {"iterations": iterations, "prior": prior}
    wanted = twin(reference.invert_by_sign, network, x0, grid(nodes), prediction, **settings)
    found = run(GNRI(iterations, prior), nodes, x0)
    assert distance(found.state["latents"], wanted) < 1e-10
    if prior and iterations > 1:
        assert distance(run(GNRI(iterations), nodes, x0).state["latents"], wanted) > 1e-4
    assert found.residual.shape == (12, 3)
    if iterations == 1:
        assert distance(wanted, twin(ddim_alone, network, x0, grid(nodes), prediction, iterations=1)) < 1e-12


def ddim_alone(model, x, nodes, prediction, iterations):
    return ddim.invert(model, x, nodes, prediction)


EVERY = [
    *(ReNoise(1, **PLAIN), ReNoise(9, **MILD), ReNoise(), GNRI(3), GNRI(3, 0.1)),
    ReNoise(2, **MILD, average=False, shifts="channel"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", EVERY)
def test_a_batch_equals_its_images_bit_for_bit(method, dtype, x0):
    nodes, predict = schedule(), predictor(3, dtype)
    x0 = torch.stack([x0[0] * 0.1, x0[1], x0[2] * 3]).to(dtype)
    together = run(method, nodes, x0, predict).state["latents"]
    for j, row in enumerate(x0.split(1)):
        single = dataclasses.replace(method, seed=method.seed + j) if isinstance(method, ReNoise) else method
        assert torch.equal(run(single, nodes, row).state["latents"][0], together[j])


@pytest.mark.parametrize("method", EVERY)
def test_the_way_a_network_writes_its_output_changes_nothing(method, x0):
    found = {}
    for prediction in ("epsilon", "v_prediction", "sample"):
        nodes = schedule(prediction=prediction)
        found[prediction] = run(method, nodes, x0, predictor(3, function=rewritten(nodes))).state["latents"]
    assert distance(found["v_prediction"], found["epsilon"]) < 1e-8
    assert distance(found["sample"], found["epsilon"]) < 1e-8


@pytest.mark.parametrize(
    ("method", "early", "late"),  # evaluations of a step below t = 250, of which there are three, and of the others
    [
        (ReNoise(1, **PLAIN), 2, 2),
        (ReNoise(1), 3, 3),
        (ReNoise(9, **PLAIN), 5, 10),
        (ReNoise(9), 6, 11),
        (ReNoise(7, **PLAIN), 5, 8),
        (ReNoise(9, **PLAIN, average=False), 10, 10),
        (ReNoise(9, first_iterations=2), 4, 11),
        (GNRI(3), 3, 3),
    ],
)
def test_cost(method, early, late, x0):
    nodes, predict = schedule(), predictor(3)
    run(method, nodes, x0, predict)
    assert predict.evaluations == [3 * early + 9 * late] * 3


def test_a_published_shift_of_zero_shrinks_the_noise():
    """What makes x_T too small: a plane beside itself is all correlation."""
    e = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(4))
    zero, one = torch.zeros(4, 5, 4, 12), torch.zeros(4, 5, 12)
    assert Whitener(e, 0.0, 20.0, "channel")(e, e, zero).std() < 0.9 * e.std()
    assert Whitener(e, 0.0, 20.0)(e, e, one).std() > 0.95 * e.std()


def test_the_last_iterate_without_regularisation_is_the_plain_fixed_point(x0):
    wanted = run(FixedPoint(5), schedule(), x0).state["latents"]
    assert distance(run(ReNoise(4, **PLAIN, average=False), schedule(), x0).state["latents"], wanted) < 1e-14


def test_without_regularisation_a_window_of_one_is_the_plain_fixed_point(x0):
    method = ReNoise(4, **PLAIN, early_window=(4, 5), late_window=(4, 5))
    wanted = run(FixedPoint(5), schedule(), x0).state["latents"]
    assert distance(run(method, schedule(), x0).state["latents"], wanted) < 1e-14


def test_composes_with_the_forward_start(x0):
    nodes, method = schedule(), ForwardStart(3, ReNoise(2, **MILD))
    noise = noise_for(x0.shape, 7865).double()
    x = nodes.alpha[3] * x0 + nodes.sigma[3] * noise_for(x0.shape, method.seed).double()
    out = []
    for row, n in zip(x.split(1), noise.split(1), strict=True):
        uniform, origin = draws(12, 4)[3:], float(nodes.alpha[3] ** 2)
        settings = {"iterations": 2, **MILD, "noise": n, "uniform": uniform, "origin": origin}
        out.append(reference.invert(network, row, grid(nodes)[3:], **settings))
    assert distance(run(method, nodes, x0).state["latents"], torch.cat(out)) < 1e-10


@pytest.mark.parametrize("shape", [(2, 3, 16, 16), (2, 3, 33, 20), (1, 4, 5, 6), (1, 1, 3, 3), (1, 2, 8, 64)])
def test_gradients_equal_autograd(shape):
    generator = torch.Generator().manual_seed(1)
    e, wanted = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    e[:, 0] *= 1e-3  # a channel without variance
    drawn = torch.rand(12, generator=generator, dtype=torch.float64)
    for row, w in zip(e.split(1), wanted.split(1), strict=True):
        by_hand = reference.gradient(lambda v, w=w: reference.patch_divergence(v, w, VARIANCE_FLOOR), row)
        assert (patch_gradient(row, w) - by_hand).abs().max() < 1e-10
        by_hand = reference.gradient(lambda v: reference.autocorrelation(v, drawn), row)
        assert (roll_gradient(row, drawn) - by_hand).abs().max() < 1e-12


def test_regularised_noise_looks_more_like_noise():
    generator = torch.Generator().manual_seed(2)
    true, e = (torch.randn(2, 4, 8, 8, generator=generator) for _ in range(2))
    e = 0.5 * (e + e.roll(1, 3))  # correlated, and too weak
    table = draws(1, 1)[0, 0].float()

    def correlation(x):
        return float((x * x.roll(1, 3)).mean().abs() / x.square().mean())

    assert correlation(Whitener(e, 0.0, 20.0)(e, true, table)) < 0.8 * correlation(e)
    assert abs(float(Whitener(e, 0.065, 0.0)(e, true, table).std()) - 1) < abs(float(e.std()) - 1)


def test_a_gradient_that_is_not_finite_is_left_out_image_by_image():
    generator = torch.Generator().manual_seed(3)
    wanted, e = (torch.randn(3, 4, 16, 16, generator=generator) for _ in range(2))
    table = draws(1, 1)[0, 0].float()
    alone = Whitener(e, 0.065, 20.0)(e, wanted, table)
    wanted[1, 2, 3, 3] = torch.inf
    found = Whitener(e, 0.065, 20.0)(e, wanted, table)
    assert torch.equal(found[[0, 2]], alone[[0, 2]])
    assert torch.equal(found[1], Whitener(e, 0.0, 20.0)(e, wanted, table)[1])


@pytest.mark.filterwarnings("ignore:float16 on a CPU")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_white_and_black_images_stay_finite(pipe, dtype):
    plain = [Image.new("RGB", (64, 64), color) for color in ("white", "black")]
    for method in (ReNoise(), GNRI()):
        inv = invert(pipe, plain, method=method, num_inference_steps=2, dtype=dtype)
        assert inv.latents.isfinite().all()
        assert inv.latents.std() < 3


def test_reconstructs_better_than_ddim(pipe, peach):
    def quality(method):
        inv = invert(pipe, peach, "noto peach", method=method, num_inference_steps=5)
        return float(metrics.latent_psnr(reconstruct(pipe, inv, output_type="latent").latents, inv.init_latents))

    assert quality(ReNoise(9, **PLAIN)) > quality(DDIM()) + 10


def test_settings_survive_a_file(tiny, peach, tmp_path):
    from invfast.inversion import Inversion

    method = ReNoise(2, early_window=[0, 2])
    assert from_dict(to_dict(method)) == method
    inv = invert(tiny, peach, method=method, num_inference_steps=4)
    inv.save(tmp_path / "a.safetensors")
    assert Inversion.load(tmp_path / "a.safetensors").method == method


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(ReNoise, 0), "ReNoise iterations must be an integer of at least 1, got 0"),
        (partial(ReNoise, 1.5), "ReNoise iterations"),
        (partial(ReNoise, lambda_kl=-1), "lambda_kl must be a finite number of at least 0, got -1"),
        (partial(ReNoise, lambda_ac=float("nan")), "lambda_ac"),
        (partial(ReNoise, early_window=(3, 3)), r"early_window must be two integers 0 <= first < end, got \(3, 3\)"),
        (partial(ReNoise, late_window=5), "late_window"),
        (partial(ReNoise, first_iterations=0), "first_iterations must be None or an integer of at least 1, got 0"),
        (partial(ReNoise, average=2), "unknown ReNoise average 2"),
        (partial(ReNoise, shifts="random"), "unknown ReNoise shifts 'random'"),
        (partial(GNRI, prior=-1), "GNRI prior must be a finite number of at least 0, got -1"),
        (partial(GNRI, 0), "GNRI iterations must be an integer of at least 1"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()
