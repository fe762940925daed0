"""Runtimes: the same numbers as eager float32, and no work in the loop that is not the network's."""

import copy

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
from diffusers.models.attention_processor import AttnProcessor2_0
from peft import LoraConfig
from tiny import SD, SDXL, stable_diffusion
from torch.utils._python_dispatch import TorchDispatchMode
from toy import distance

from invfast import demo, invert, prepare, reconstruct, runtimes
from invfast.adapters.clone import private
from invfast.fingerprint import fingerprint
from invfast.methods import METHODS, FixedPoint, Problem
from invfast.runtimes import RUNTIMES, Spec
from invfast.runtimes.split import split
from invfast.schedule import Schedule

STEP = 1e-5
"""What two runtimes may differ by in a step; a run may by as much for each of its steps."""
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
    return SDXL()


NETWORKS = {
    "sd": (lambda: stable_diffusion().unet, 4, {"encoder_hidden_states": (12, 32)}),
    "v_prediction": (lambda: demo.load_pipeline("v_prediction").unet, 4, {"encoder_hidden_states": (12, 128)}),
    "sdxl": (sdxl, 4, {"encoder_hidden_states": (12, 32), "text_embeds": (16,), "time_ids": (6,)}),
    "unconditional": (unconditional, 3, {}),
}


def ready(runtime, module, inputs):
    """A network of a runtime, in float32."""
    device, dtype = torch.device("cpu"), torch.float32
    own = private(module, dtype, RUNTIMES[runtime].memory_format(device))
    spec = Spec(device, dtype, lambda: fingerprint(module).exact)
    return RUNTIMES[runtime].prepare(own, inputs, spec)


def inverted(pipe, image, runtime, steps=3, **options):
    """The noise that the plain loop finds."""
    return invert(pipe, image, method="ddim", num_inference_steps=steps, runtime=runtime, **options).latents


# The v-prediction network is the bundled one rewritten: the operations of "sd", and the slowest to convert.
FAST = [("openvino", name) for name in NETWORKS if name != "v_prediction"]
SLOW = [("openvino", "v_prediction"), *(("compile", name) for name in NETWORKS)]


@pytest.mark.parametrize(("runtime", "name"), [*FAST, *(pytest.param(*each, marks=pytest.mark.slow) for each in SLOW)])
def test_one_evaluation_is_eagers(runtime, name):
    make, channels, static = NETWORKS[name]
    module = make().eval()
    for batch, height, width in ((1, 8, 8), (3, 16, 8)):
        g = torch.Generator().manual_seed(batch)
        draw = lambda *shape, g=g: torch.randn(shape, generator=g)  # noqa: E731
        inputs = {"x": draw(batch, channels, height, width), "t": torch.tensor(0)}
        inputs |= {key: draw(batch, *shape) for key, shape in static.items()}
        eager, other = (ready(each, module, inputs) for each in ("eager", runtime))
        for t in (1, 501, 981):
            call = {**inputs, "t": torch.tensor(t)}
            with torch.inference_mode():
                wanted, got = eager(**call), other(**call)
            assert got.shape == wanted.shape
            assert distance(got, wanted) < 1e-5
        kept = got.clone()
        other(**inputs)
        assert torch.equal(got, kept)  # the caller's to keep


@pytest.mark.parametrize("runtime", EXPORTING)
@pytest.mark.filterwarnings("ignore:inverting at guidance_scale")
def test_inversions_are_eagers(runtime, tiny, samples):
    images = [samples[name].image for name in ("peach", "cat", "house")]
    prompts = ["noto peach", "photo cat", ""]
    for guidance in (1.0, 3.0):
        options = {"method": "anderson", "num_inference_steps": 4, "guidance_scale": guidance}
        wanted = invert(tiny, images, prompts, **options, runtime="eager")
        got = invert(tiny, images, prompts, **options, runtime=runtime)
        assert (got.stats.runtime, got.stats.dtype) == (runtime, torch.float32)
        assert distance(got.latents, wanted.latents) < 1e-4
        for j, (image, prompt) in enumerate(zip(images, prompts, strict=True)):
            alone = invert(tiny, image, prompt, **options, runtime=runtime)
            assert distance(got.latents[j : j + 1], alone.latents) < 1e-4
        back = reconstruct(tiny, got, output_type="latent", runtime=runtime)
        assert distance(back.latents, reconstruct(tiny, wanted, output_type="latent").latents) < 1e-3


@pytest.mark.parametrize("runtime", EXPORTING)
def test_sizes_that_do_not_halve_evenly(runtime, tiny, peach):
    odd = peach.resize((88, 72))
    wanted = inverted(tiny, odd, "eager")
    assert wanted.shape == (1, 4, 9, 11)
    assert distance(inverted(tiny, odd, runtime), wanted) < 3 * STEP


def test_images_that_are_done_are_left_out(tiny, samples):
    images = [samples[name].image for name in ("peach", "cat", "house")]
    options = {"method": FixedPoint(6, "anderson", tolerance=3e-2), "num_inference_steps": 4}
    eager, other = (invert(tiny, images, **options, runtime=runtime) for runtime in ("eager", "openvino"))
    assert other.stats.evaluations == eager.stats.evaluations
    assert distance(other.latents, eager.latents) < 1e-4


def test_a_lora_counts(peach, caplog):
    pipe = stable_diffusion()
    plain = inverted(pipe, peach, "openvino")
    pipe.unet.add_adapter(LoraConfig(r=4, target_modules=["to_q", "to_v"], init_lora_weights=False))
    for scale in (1.0, 0.3):
        for part in pipe.unet.modules():
            if hasattr(part, "scaling") and isinstance(part.scaling, dict):
                part.scaling = {"default": scale}
        wanted = inverted(pipe, peach, "eager")
        got = inverted(pipe, peach, "openvino")
        assert distance(got, wanted) < 3 * STEP
        assert distance(got, plain) > 1e-4
    pipe.unet.disable_adapters()
    caplog.clear()
    assert distance(inverted(pipe, peach, "openvino"), plain) < 3 * STEP


def test_changed_weights_are_another_network(peach):
    pipe = stable_diffusion()
    first = inverted(pipe, peach, "openvino", 2)
    pipe.unet.conv_out.weight.data.mul_(1.01)  # behind every version counter
    wanted = inverted(pipe, peach, "eager", 2)
    got = inverted(pipe, peach, "openvino", 2)
    assert distance(got, wanted) < 2 * STEP < distance(got, first)


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
    runtimes.release()
    found = prepare(pipe, height=64, width=64, runtime="openvino")
    assert (found.runtime, found.dtype, found.reason) == ("openvino", torch.float32, "asked for by name")
    kept = dict(runtimes.prepared_networks())
    invert(pipe, peach, num_inference_steps=1, runtime="openvino")
    assert dict(runtimes.prepared_networks()) == kept  # the same one
    assert len(kept) == 1


def test_a_network_that_shares_weights_is_theirs_alone():
    class Sharing:
        name, exports, shares = "sharing", True, True

        def prepare(self, module, example_inputs, spec):
            return module

    def prepared(runtime, **changes):
        spec = Spec(torch.device("cpu"), torch.float32, lambda: "same", **changes)
        return runtimes.prepared(runtime, lambda: torch.nn.Linear(1, 1), {"x": torch.zeros(1, 1)}, spec)

    runtimes.release()
    first = prepared(Sharing(), addresses=lambda: (1,))
    assert prepared(Sharing(), addresses=lambda: (1,)) is first
    assert prepared(Sharing(), addresses=lambda: (2,)) is not first
    assert prepared(Sharing(), addresses=lambda: (1,), precomputed=("prompt",)) is not first
    runtimes.release()


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


def test_a_float16_pipeline_is_computed_in_float32(peach):
    pipe = stable_diffusion()
    pipe.unet.half()
    wanted = inverted(pipe, peach, "eager", 2, dtype="float32")
    got = inverted(pipe, peach, "openvino", 2, dtype="float32")
    assert distance(got, wanted) < 2 * STEP


def test_pixel_space_on_openvino(samples):
    pipe = DDIMPipeline(unconditional(), DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    image = samples["peach"].image.resize((16, 16))
    assert distance(inverted(pipe, image, "openvino"), inverted(pipe, image, "eager")) < 3 * STEP
