"""Runtimes: the same numbers as eager float32, and no work in the loop that is not the network's."""

import copy
from functools import partial

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
from diffusers.models.attention_processor import AttnProcessor2_0
from exact import as_exact_as_eager, steps, steps_as_exact_as_eagers
from peft import LoraConfig
from tiny import SD, sdxl_unet, spec, stable_diffusion
from torch.utils._python_dispatch import TorchDispatchMode
from toy import distance

from invfast import demo, invert, prepare, reconstruct, release, runtimes
from invfast.adapters import unets
from invfast.denoiser.clone import private
from invfast.fingerprint import fingerprint
from invfast.methods import METHODS, FixedPoint, Problem
from invfast.runtimes import RUNTIMES, Spec, Traits
from invfast.runtimes.split import split
from invfast.schedule import Schedule
from invfast.store import READY

TIMES = (1, 501, 981)
EXPORTING = ["openvino", pytest.param("compile", marks=pytest.mark.slow)]


def unconditional():
    torch.manual_seed(0)
    return UNet2DModel(
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
    )


def sdxl():
    torch.manual_seed(0)
    unet = sdxl_unet()
    return unets.form(unet).flat(unet)


NETWORKS = {
    "sd": (lambda: stable_diffusion().unet, 4, {"encoder_hidden_states": (12, 32)}),
    "v_prediction": (lambda: demo.load_pipeline("v_prediction").unet, 4, {"encoder_hidden_states": (12, 128)}),
    "sdxl": (sdxl, 4, {"encoder_hidden_states": (12, 32), "text_embeds": (16,), "time_ids": (6,)}),
    "unconditional": (unconditional, 3, {}),
}


def ready(runtime, module, inputs, dtype=torch.float32):
    """A network of a runtime."""
    device = torch.device("cpu")
    own = private(module, dtype, RUNTIMES[runtime].memory_format(device))
    return RUNTIMES[runtime].prepare(own, inputs, spec(module, inputs, dtype))


def drawn(name, batch, height, width):
    """Inputs of a network of `NETWORKS`."""
    _, channels, static = NETWORKS[name]
    g = torch.Generator().manual_seed(batch)
    inputs = {"x": torch.randn(batch, channels, height, width, generator=g), "t": torch.tensor(0)}
    return inputs | {key: torch.randn(batch, *shape, generator=g) for key, shape in static.items()}


def evaluated(network, inputs, dtype=torch.float32):
    """A network's outputs at three times, from inputs in its dtype."""
    inputs = {key: value.to(dtype) if value.is_floating_point() else value for key, value in inputs.items()}
    with torch.inference_mode():
        return [network(**{**inputs, "t": torch.tensor(t)}) for t in TIMES]


def evaluations_are_eagers(runtime, name, module, *sizes):
    """Batches of some sizes, (images, height, width), at three times each, as exact as eager; results are kept."""
    found, eager, exact = [], [], []
    for size in sizes:
        inputs = drawn(name, *size)
        network = ready(runtime, module, inputs)
        found += evaluated(network, inputs)
        eager += evaluated(ready("eager", module, inputs), inputs)
        exact += evaluated(ready("eager", module, inputs, torch.float64), inputs, torch.float64)
        got = network(**inputs)
        kept = got.clone()
        network(**{**inputs, "t": torch.tensor(1)})
        assert torch.equal(got, kept)  # the caller's to keep
    as_exact_as_eager(found, eager, exact)


def inverting(pipe, image, runtime, steps=3, **options):
    """The plain loop from an image to its noise, to be called."""
    return partial(invert, pipe, image, method="ddim", num_inference_steps=steps, runtime=runtime, **options)


def inversions_are_eagers(runtime, pipe, images, prompts, **options):
    """There and back in a batch, as exact as eager; the two inversions, eager's steps and float64's."""
    there = partial(invert, pipe, images, prompts, **options)
    path, _ = steps(partial(there, runtime="eager", dtype="float64"))
    plain, wanted = steps(partial(there, runtime="eager"), path)
    found, got = steps(partial(there, runtime=runtime), path)
    as_exact_as_eager(found, plain, path)
    assert (got.stats.runtime, got.stats.dtype) == (runtime, torch.float32)
    back = partial(reconstruct, pipe, got, output_type="latent")
    steps_as_exact_as_eagers(partial(back, runtime=runtime), partial(back, runtime="eager"))
    return got, wanted, plain, path


# The v-prediction network is the bundled one rewritten: the operations of "sd", and the slowest to convert.
FAST = [("openvino", "sd")]
SLOW = [
    ("openvino", "unconditional"),
    ("openvino", "v_prediction"),
    ("openvino", "sdxl"),
    *(("compile", name) for name in NETWORKS),
]


@pytest.mark.parametrize(("runtime", "name"), [*FAST, *(pytest.param(*each, marks=pytest.mark.slow) for each in SLOW)])
def test_one_evaluation_is_eagers(runtime, name):
    module = NETWORKS[name][0]().eval()
    evaluations_are_eagers(runtime, name, module, (1, 8, 8), (3, 16, 8))


@pytest.mark.parametrize("runtime", EXPORTING)
@pytest.mark.filterwarnings("ignore:inverting at guidance_scale")
def test_inversions_are_eagers(runtime, tiny, samples):
    images = [samples[name].image for name in ("peach", "cat", "house")]
    prompts = ["noto peach", "photo cat", ""]
    for guidance in (1.0, 3.0):
        options = {"method": "anderson", "num_inference_steps": 4, "guidance_scale": guidance}
        *_, plain, path = inversions_are_eagers(runtime, tiny, images, prompts, **options)
        alone = []
        for j, given in enumerate(zip(images, prompts, strict=True)):
            exact = [latents[j : j + 1] for latents in path]
            alone.append(steps(partial(invert, tiny, *given, **options, runtime=runtime), exact)[0])
        as_exact_as_eager([torch.cat(each) for each in zip(*alone, strict=True)], plain, path)


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["openvino", "compile"])
def test_sizes_that_do_not_halve_evenly(runtime, tiny, peach):
    odd = peach.resize((88, 72))
    got, *_ = steps_as_exact_as_eagers(inverting(tiny, odd, runtime), inverting(tiny, odd, "eager"))
    assert got.latents.shape == (1, 4, 9, 11)


@pytest.mark.slow
def test_images_that_are_done_are_left_out(samples):
    images = [samples[name].image for name in ("peach", "cat", "house")]
    # Residuals of the first step's second iteration: 6.7e-3, 8.2e-3 and 6.2e-3, all others far from the tolerance.
    options = {"method": FixedPoint(6, "anderson", tolerance=7.4e-3), "num_inference_steps": 4}
    got, wanted, *_ = inversions_are_eagers("openvino", stable_diffusion(steep=True), images, "", **options)
    assert got.stats.evaluations == wanted.stats.evaluations == (20, 21, 20)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_a_lora_counts(scale, peach):
    pipe = stable_diffusion()
    plain = inverting(pipe, peach, "openvino")().latents
    pipe.unet.add_adapter(LoraConfig(r=4, target_modules=["to_q", "to_v"], init_lora_weights=False))
    for part in pipe.unet.modules():
        if hasattr(part, "scaling") and isinstance(part.scaling, dict):
            part.scaling = {"default": scale}
    got, *_ = steps_as_exact_as_eagers(inverting(pipe, peach, "openvino"), inverting(pipe, peach, "eager"))
    assert distance(got.latents, plain) > 1e-4


@pytest.mark.slow
def test_a_lora_that_is_off_does_not_count(peach):
    pipe = stable_diffusion()
    pipe.unet.add_adapter(LoraConfig(r=4, target_modules=["to_q", "to_v"], init_lora_weights=False))
    pipe.unet.disable_adapters()
    steps_as_exact_as_eagers(inverting(pipe, peach, "openvino"), inverting(stable_diffusion(), peach, "eager"))


@pytest.mark.slow
def test_changed_weights_are_another_network(peach):
    pipe = stable_diffusion()
    first = inverting(pipe, peach, "openvino", 2)().latents
    pipe.unet.conv_out.weight.data.mul_(1.01)  # behind every version counter
    got, *_ = steps_as_exact_as_eagers(inverting(pipe, peach, "openvino", 2), inverting(pipe, peach, "eager", 2))
    assert distance(got.latents, first) > 1e-4


def test_digests_know_settings():
    module = stable_diffusion().unet
    digest = fingerprint(module).exact
    assert digest == fingerprint(copy.deepcopy(module)).exact
    module.set_attn_processor(AttnProcessor2_0())
    assert digest == fingerprint(module).exact
    module.mid_block.attentions[0].transformer_blocks[0].attn1.scale *= 2
    assert digest != fingerprint(module).exact


class Own:
    def __call__(self, attn, hidden_states, *args, **kwargs):
        return AttnProcessor2_0()(attn, hidden_states, *args, **kwargs)


def test_what_only_python_can_run_stays_eager(peach):
    pipe = stable_diffusion()
    pipe.unet.set_attn_processor(Own())
    stats = invert(pipe, peach, num_inference_steps=1).stats
    assert stats.runtime == "eager"
    assert "attention processor Own is the caller's own" in stats.reason
    for runtime in ("openvino", "compile"):
        with pytest.raises(ValueError, match=f"'{runtime}' cannot run this network: attention processor Own"):
            invert(pipe, peach, runtime=runtime)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"runtime": "openvino_gpu"},
            RuntimeError,
            "'openvino_gpu' is unavailable: OpenVINO finds no GPU here, only CPU",
        ),
        ({"runtime": "openvino", "dtype": "float64"}, ValueError, "not in torch.float64"),
    ],
)
def test_runtimes_that_cannot(options, error, message, tiny, peach):
    with pytest.raises(error, match=message):
        invert(tiny, peach, **options)


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 7])
def test_split_is_any_batch(rows):
    seen = []

    def network(x, t, weight):
        seen.append(len(x))
        return x * weight + t

    x, weight = torch.randn(rows, 2), torch.randn(rows, 1)
    out = split(network, 3)(x, torch.tensor(2), weight=weight)
    assert torch.equal(out, x * weight + 2)
    assert set(seen) == {3}


def test_prepare_then_invert(peach, caplog):
    pipe = stable_diffusion()
    release()
    found = prepare(pipe, height=64, width=64, runtime="openvino")
    assert (found.runtime, found.dtype, found.reason) == ("openvino", torch.float32, "asked for by name")
    kept = READY.contents()
    invert(pipe, peach, num_inference_steps=1, runtime="openvino")
    assert [key for key in kept if key[0] == "network"] == [key for key in READY.contents() if key[0] == "network"]
    assert all(READY.contents()[key] is value for key, value in kept.items())  # the same ones


def test_a_network_that_shares_weights_is_theirs_alone():
    class Sharing:
        name, traits = "sharing", Traits(shares=True)

        def prepare(self, module, example_inputs, spec):
            return module

    def prepared(runtime, **changes):
        spec = Spec(torch.device("cpu"), torch.float32, lambda: "same", **changes)
        return runtimes.prepared(runtime, lambda: torch.nn.Linear(1, 1), {"x": torch.zeros(1, 1)}, spec)

    release()
    first = prepared(Sharing(), addresses=lambda: ((1,),))
    assert prepared(Sharing(), addresses=lambda: ((1,),)) is first
    assert prepared(Sharing(), addresses=lambda: ((2,),)) is not first
    assert prepared(Sharing(), addresses=lambda: ((1,),), precomputed=("prompt",)) is not first
    release()


class Forbidden(TorchDispatchMode):
    """Counts what makes a device wait for the host, from the first evaluation on."""

    NAMES = ("_local_scalar_dense", "nonzero", "item")

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if any(name in str(function) for name in self.NAMES):
            self.found.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("method", ["ddim", "easyinv", "warm_start", "anderson"])
def test_no_step_waits_for_the_device(method):
    """Between two evaluations our own code reads no value of a tensor; the network is a stand-in."""
    grid = Schedule.from_scheduler(DDIMScheduler(**SD), 6)
    problem = Problem(grid, 1.0, torch.device("cpu"), torch.float32, None)
    stepper = METHODS[method].inverter(problem)
    state = stepper.init({"latents": torch.randn(1, 4, 8, 8)})
    predict = lambda x, t, samples=None: (0.1 * x,)  # noqa: E731
    steps = grid.on("cpu")
    with torch.inference_mode(), Forbidden() as mode:
        for i in stepper.steps:
            state, _ = stepper.step(steps[i], state, predict)
    assert mode.found == []


@pytest.mark.slow
def test_a_float16_pipeline_is_computed_in_float32(peach):
    pipe = stable_diffusion()
    pipe.unet.half()
    there = partial(inverting, pipe, peach, steps=2)
    exact = there(runtime="eager", dtype="float64")
    steps_as_exact_as_eagers(*(there(runtime=each, dtype="float32") for each in ("openvino", "eager")), exact)


@pytest.mark.slow
def test_pixel_space_on_openvino(samples):
    pipe = DDIMPipeline(unconditional(), DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    image = samples["peach"].image.resize((16, 16))
    steps_as_exact_as_eagers(inverting(pipe, image, "openvino"), inverting(pipe, image, "eager"))
