"""What is computed once a run: the result is the network's own, and nothing that needs the layers loses them."""

import pytest
import tiny
import torch
from diffusers import UNet2DModel
from diffusers.models.attention_processor import AttnProcessor2_0
from exact import as_exact_as_eager
from toy import distance

from invfast import invert, reconstruct
from invfast.denoiser.clone import private
from invfast.denoiser.precompute import PARTS, Precomputed, TimeTable, reduced, refusals
from invfast.methods import NoiseMaps, NullText, PromptTuning
from invfast.runtimes import RUNTIMES, onnx

EACH = [("prompt",), ("times",), PARTS]


@pytest.fixture(scope="module")
def pair():
    """A pipeline and latents of two images."""
    return tiny.stable_diffusion(), torch.randn(2, 4, 16, 8, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("parts", EACH)
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_evaluation_is_the_networks_own(pair, parts, dtype):
    unet, dtype = pair[0].unet, getattr(torch, dtype)
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(3, 4, 16, 8, generator=generator).to(dtype)
    embeds, times = torch.randn(3, 12, 32, generator=generator).to(dtype), torch.tensor([1, 333, 981])
    own, double = (private(unet, each, torch.channels_last) for each in (dtype, torch.float64))
    before = Precomputed(unet, parts, dtype)
    table = before.times(times)
    module = reduced(private(unet, dtype, torch.channels_last), parts)
    with torch.inference_mode():
        given, asked = before.prompt(embeds), [*times, times]  # one time for all, and a time a row
        found = [module(x, table(t) if table else t, given).sample for t in asked]
        wanted = [own(x, t, embeds).sample for t in asked]
        exact = [double(x.double(), t, embeds.double()).sample for t in asked]
    assert {each.dtype for each in found} == {dtype}
    if dtype == torch.float64:
        assert all(distance(a, b) < 1e-12 for a, b in zip(found, exact, strict=True))
    else:
        as_exact_as_eager(found, wanted, exact)
    assert own.time_proj is not None
    assert not hasattr(unet, "precomputed")


def inputs_of(unet):
    """What the whole network answers in float32 and float64, what the reduced one is asked, and it; two samples."""
    generator = torch.Generator().manual_seed(4)
    x, embeds = torch.randn(2, 4, 16, 8, generator=generator), torch.randn(2, 12, 32, generator=generator)
    before, times = Precomputed(unet, PARTS, torch.float32), torch.tensor([1, 501])
    with torch.inference_mode():
        given = {"x": x, "t": before.times(times)(times[1]), "encoder_hidden_states": before.prompt(embeds)}
        wanted = unet(x, times[1], embeds).sample
        exact = private(unet, torch.float64, torch.channels_last)(x.double(), times[1], embeds.double()).sample
    module = reduced(private(unet, torch.float32, torch.channels_last), PARTS).eval()
    return (wanted, exact), given, module, tiny.spec(module, given, identity=lambda: "precomputed", precomputed=PARTS)


@pytest.mark.slow
def test_compiled(pair):
    wanted, given, module, spec = inputs_of(pair[0].unet.eval())
    with torch.inference_mode():
        as_exact_as_eager(RUNTIMES["compile"].prepare(module, given, spec)(**given), *wanted)


@pytest.mark.slow
def test_the_file_that_tensorrt_reads(pair):
    onnxruntime = pytest.importorskip("onnxruntime")
    wanted, given, module, spec = inputs_of(pair[0].unet.eval())
    session = onnxruntime.InferenceSession(onnx.exported(module, given, spec), providers=["CPUExecutionProvider"])
    for rows in (1, 2):
        fed = {name: (x if name == "t" else x[:rows]).numpy() for name, x in given.items()}
        as_exact_as_eager(torch.from_numpy(session.run(None, fed)[0]), *(each[:rows] for each in wanted))


@pytest.mark.parametrize("parts", EACH)
@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.filterwarnings("ignore:inverting at guidance")
def test_inversion_is_the_same(pair, parts, scale):
    pipe, x = pair
    settings = {**tiny.QUICK, "guidance_scale": scale, "dtype": "float64", "runtime": "eager"}
    wanted = invert(pipe, x, ["peach", "cat"], precompute=(), **settings)
    found = invert(pipe, x, ["peach", "cat"], precompute=parts, **settings)
    assert wanted.stats.precomputed == ()
    assert found.stats.precomputed == parts
    assert found.stats.evaluations == wanted.stats.evaluations
    assert distance(found.latents, wanted.latents) < 1e-12


@pytest.mark.parametrize("method", [NullText(iterations=2), PromptTuning(iterations=2), NoiseMaps()])
def test_methods_that_change_embeddings_or_batch_times(pair, method):
    pipe, x = pair
    settings = {**tiny.QUICK, "method": method, "dtype": "float64", "runtime": "eager"}
    wanted, found = (invert(pipe, x, ["peach", "cat"], precompute=parts, **settings) for parts in ((), PARTS))
    for name, value in wanted.state.items():
        assert distance(found.state[name], value) < 1e-9
    back = [
        reconstruct(pipe, found, precompute=parts, dtype="float64", output_type="latent").latents
        for parts in ((), PARTS)
    ]
    assert distance(*back) < 1e-9


def test_default_takes_all_and_says_so(pair):
    pipe, x = pair
    found = invert(pipe, x, **tiny.QUICK, runtime="eager")
    assert found.stats.precomputed == PARTS
    assert reconstruct(pipe, found, runtime="eager", precompute=(), output_type="latent").stats.precomputed == ()


def test_time_outside_the_table_is_nan():
    table = TimeTable(torch.tensor([21, 1]), torch.tensor([[2.0], [1.0]]))
    assert table(torch.tensor(1)).tolist() == [[1.0]]
    assert table(torch.tensor([21, 1, 21])).tolist() == [
        [2.0],
        [1.0],
        [2.0],
    ]
    for t in (0, 2, 22, torch.iinfo(torch.int64).max):
        assert table(torch.tensor(t)).isnan().all()


class Recorder(AttnProcessor2_0):
    """A controller that looks at the embeddings."""


def with_processor(unet):
    unet.set_attn_processor(Recorder())


def with_lora(unet):
    peft = pytest.importorskip("peft")
    unet.add_adapter(peft.LoraConfig(r=2, target_modules=["to_k"]))


def with_image_prompt(unet):
    unet.encoder_hid_proj = torch.nn.Linear(32, 32)


def with_fused(unet):
    unet.fuse_qkv_projections()


@pytest.mark.parametrize("change", [with_processor, with_lora, with_image_prompt, with_fused])
def test_prompt_stays_where_something_needs_it(change, pair):
    pipe = tiny.stable_diffusion()
    change(pipe.unet)
    settings = {**tiny.QUICK, "runtime": "eager", "dtype": "float64"}
    found = invert(pipe, pair[1], **settings)
    assert "prompt" not in found.stats.precomputed
    with pytest.raises(ValueError, match=r"precompute='prompt' is unavailable: .+; leave it out"):
        invert(pipe, pair[1], **settings, precompute=["prompt"])
    assert distance(found.latents, invert(pipe, pair[1], **settings, precompute=()).latents) < 1e-12


def test_other_networks_are_left_whole():
    assert not refusals(tiny.sdxl_unet())
    assert set(refusals(tiny.stable_diffusion(time_cond_proj_dim=8).unet)) == {"times"}  # guidance enters there
    assert set(
        refusals(
            UNet2DModel(
                block_out_channels=(8,),
                down_block_types=("DownBlock2D",),
                up_block_types=("UpBlock2D",),
                norm_num_groups=4,
            )
        )
    ) == set(PARTS)


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [("prompt", TypeError, "sequence of names"), (["keys"], ValueError, "unknown part 'keys'")],
)
def test_bad_choices(pair, given, error, said):
    with pytest.raises(error, match=said):
        invert(pair[0], pair[1], **tiny.QUICK, precompute=given)
