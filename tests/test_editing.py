"""Editing: each editor against its long-hand reference, what an edit leaves alone, and how it runs."""

import numpy as np
import pytest
import tiny as networks
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from recorded import Recorder
from tiny_transformers import qwen_image, stable_diffusion_3
from toy import distance
from transformers import CLIPTextModel, PreTrainedTokenizerFast

from invfast import demo, edit, editing, invert, reconstruct, release, run
from invfast.denoiser import Denoiser
from invfast.editing import attention, words
from invfast.reference import editing as reference

SOURCE, TARGET = "noto red apple", "noto green tulip"
STEPS, SCALE = 5, 3.0
EXACT = {"runtime": "eager", "dtype": "float64", "output_type": "latent"}


def sixteen():
    """A pipeline whose UNet has Stable Diffusion's sixteen self-attentions."""

    def make():
        unet = UNet2DConditionModel(
            sample_size=16,
            block_out_channels=(8, 8, 16, 16),
            layers_per_block=2,
            down_block_types=(*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
            up_block_types=("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
            cross_attention_dim=32,
            attention_head_dim=2,
            norm_num_groups=4,
        )
        tokenizer = PreTrainedTokenizerFast.from_pretrained(networks.TOKENIZER)
        return StableDiffusionPipeline(
            vae=networks.autoencoder(),
            text_encoder=CLIPTextModel(networks.text_config(tokenizer)).eval(),
            tokenizer=tokenizer,
            unet=networks.contracting(unet, unet.conv_out),
            scheduler=DDIMScheduler(**networks.SD),
            **networks.BARE,
        )

    return networks.seeded(make)


@pytest.fixture(scope="module")
def pipe():
    return sixteen()


@pytest.fixture(scope="module")
def inversion(pipe):
    x = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    options = {"runtime": "eager", "dtype": "float64", "num_inference_steps": STEPS, "save_trajectory": True}
    return invert(pipe, x, [SOURCE, "noto peach"], method="ddim", **options)


@pytest.fixture(scope="module")
def exact(pipe):
    """A float64 UNet, and embeddings (1, tokens, width) of a text."""
    unet = UNet2DConditionModel.from_config(pipe.unet.config).double().eval().requires_grad_(False)
    unet.load_state_dict(pipe.unet.state_dict())
    return unet, lambda text: pipe.encode_prompt(text, "cpu", 1, False)[0].detach().double()


def grid(inversion):
    """As the references take it, noise end first."""
    t, level = inversion.schedule.t.tolist(), (inversion.schedule.alpha**2).tolist()
    return [(int(t[i + 1]), level[i + 1], level[i]) for i in reversed(range(STEPS))]


def every_step(pipe, inversion, prompt, **options):
    """The edit's latents after every step."""
    found = []
    rows = editing.editors.resolve(options["method"]).rows
    keep = lambda pipe, step, t, tensors: found.append(tensors["latents"].chunk(rows, 1)[-1])  # noqa: E731
    edit(pipe, inversion, prompt, callback_on_step_end=keep, **EXACT, **options)
    return found


def close(found, wanted):
    assert len(found) == len(wanted)
    for step, (mine, its) in enumerate(zip(found, wanted, strict=True)):
        assert distance(mine, its) < 1e-10, step


@pytest.mark.parametrize(("step", "layer"), [(2, 10), (0, 0), (4, 15)])
def test_masactrl(pipe, inversion, exact, step, layer):
    unet, embeds = exact
    one = inversion[0]
    told = {"source": embeds(SOURCE), "target": embeds(TARGET), "away": embeds("blue")}
    method = editing.MasaCtrl(step, layer)
    found = every_step(pipe, one, TARGET, method=method, guidance_scale=SCALE, negative_prompt="blue")
    close(found, reference.masactrl(unet, one.latents, told, grid(inversion), SCALE, step, layer))


def test_published_layer_is_ten_of_sixteen(pipe, inversion):
    published, default = (editing.MasaCtrl(2, layer) for layer in (10, None))
    asked = [edit(pipe, inversion[0], TARGET, method=m, **EXACT).latents for m in (published, default)]
    assert torch.equal(*asked)


@pytest.mark.parametrize(
    ("kind", "source", "target", "weights"),
    [
        ("replace", SOURCE, TARGET, {}),
        ("replace", SOURCE, TARGET, {"tulip": 2.5}),
        ("refine", SOURCE, "noto big red apple", {}),
        ("refine", SOURCE, "noto apple", {"apple": 0.5}),
        (None, SOURCE, SOURCE, {"red": 3.0}),
    ],
)
def test_prompt_to_prompt(pipe, inversion, exact, kind, source, target, weights):
    unet, embeds = exact
    one = inversion[0]
    told = {"source": embeds(source), "target": embeds(target), "away": embeds("")}
    method = editing.PromptToPrompt(kind, cross=0.8, self_=0.4, weights=tuple(weights.items()))
    found = every_step(pipe, one, target, method=method, guidance_scale=SCALE)
    if kind == "refine":
        mapped, mix = words.refined(pipe.tokenizer, source, target)
    else:
        mapped, mix = words.replaced(pipe.tokenizer, source, target), torch.ones(12)
    scaled = words.scaled(pipe.tokenizer, target, weights)
    maps = (each.double() for each in (mapped, mix, scaled))
    close(found, reference.prompt_to_prompt(unet, one.latents, told, grid(inversion), SCALE, 0.8, 0.4, *maps))


def test_portrait(pipe, inversion, exact):
    unet, embeds = exact
    first, second = inversion[0], inversion[1]
    told = {"source": embeds(SOURCE), "style": embeds("noto peach"), "target": embeds(TARGET)}
    method = editing.Portrait(0.7, layer=6)
    found = every_step(pipe, first, TARGET, method=method, style=second, guidance_scale=1.0)
    close(found, reference.portrait(unet, first.latents, second.latents, told, grid(inversion), 0.7, 6))


def test_words_that_both_have():
    tokenizer = demo.load_pipeline().tokenizer
    mapped = words.replaced(tokenizer, SOURCE, TARGET)
    assert torch.equal(mapped, torch.eye(12))
    mapped, shared = words.refined(tokenizer, SOURCE, "noto big red apple")
    assert shared.tolist() == [1, 1, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1]
    assert mapped.argmax(0).tolist() == [0, 1, 0, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    assert mapped[:, 2].sum() == 0
    assert words.scaled(tokenizer, TARGET, {"tulip": 2}).tolist() == [1, 1, 1, 2, *[1] * 8]
    with pytest.raises(ValueError, match="as many words"):
        words.replaced(tokenizer, "noto apple", TARGET)
    with pytest.raises(ValueError, match="no such word"):
        words.scaled(tokenizer, TARGET, {"apple": 2})
    with pytest.raises(ValueError, match="shorten it"):
        words.refined(tokenizer, "a " * 11, TARGET)


@pytest.mark.parametrize("name", ["prompt", "prompt_to_prompt", "masactrl", "direct"])
def test_the_source_prompt_gives_the_reconstruction(pipe, inversion, name):
    wanted = reconstruct(pipe, inversion, **EXACT).latents
    found = edit(pipe, inversion, inversion.prompt, method=name, guidance_scale=1.0, **EXACT)
    # Put back onto its path the source is where it was on the way up, not on the way down.
    assert distance(found.latents, wanted) < (1e-1 if name == "direct" else 1e-12)


SOME = [("obelm", "prompt"), ("edict", "masactrl"), ("noise_maps", "masactrl")]
OTHERS = [
    (m, n) for m in ("ddim", "edict", "bdia", "obelm", "noise_maps", "forward_start") for n in ("prompt", "masactrl")
]


@pytest.mark.parametrize(
    ("method", "name"), [*SOME, *(pytest.param(*each, marks=pytest.mark.slow) for each in OTHERS if each not in SOME)]
)
def test_every_way_back(pipe, method, name):
    x = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    there = invert(pipe, x, SOURCE, method=method, num_inference_steps=4, runtime="eager", dtype="float64")
    same = edit(pipe, there, SOURCE, method=name, guidance_scale=1.0, **EXACT)
    assert distance(same.latents, reconstruct(pipe, there, **EXACT).latents) < 1e-11
    assert distance(edit(pipe, there, TARGET, method=name, **EXACT).latents, same.latents) > 1e-3
    assert (same.partner is None) == (method != "edict")
    if method == "edict":  # the two agree where nothing is edited
        assert distance(same.partner, same.latents) < 1e-10


@pytest.mark.parametrize("name", ["prompt", "prompt_to_prompt", "direct"])
def test_a_batch_of_edits_is_its_edits(pipe, inversion, name):
    prompts = [TARGET, "noto plum"]
    whole = edit(pipe, inversion, prompts, method=name, **EXACT).latents
    for j, prompt in enumerate(prompts):
        assert distance(edit(pipe, inversion[j], prompt, method=name, **EXACT).latents, whole[j : j + 1]) < 1e-12


@pytest.mark.parametrize("editor", [editing.Prompt(), editing.Direct()])
def test_outside_a_mask_nothing_changes(pipe, inversion, editor):
    mask = np.zeros((128, 128), np.uint8)
    mask[:64, 32:96] = 255
    found = edit(pipe, inversion, TARGET, method=editor, mask=mask, runtime="eager", dtype="float64", output_type="pt")
    inside = torch.from_numpy(mask[::8, ::8] > 0)
    assert torch.equal(found.latents[..., ~inside], inversion.init_latents[..., ~inside])
    assert not torch.equal(found.latents[..., inside], inversion.init_latents[..., inside])
    before = reconstruct(pipe, inversion, runtime="eager", output_type="pt")
    untouched = edit(pipe, inversion, TARGET, mask=np.zeros((128, 128)), runtime="eager", output_type="pt").images
    outside = torch.from_numpy(mask == 0)
    assert torch.equal(found.images[..., outside], untouched[..., outside])
    assert found.images.shape == before.images.shape


def test_boxes_are_a_mask(pipe, inversion):
    mask = torch.zeros(128, 128)
    mask[16:64, 32:96] = 1
    region = editing.Region(((32, 16, 96, 64),), editing.MasaCtrl())
    found = edit(pipe, inversion, TARGET, method=region, **EXACT)
    assert torch.equal(found.latents, edit(pipe, inversion, TARGET, method="masactrl", mask=mask, **EXACT).latents)
    with pytest.raises(ValueError, match="leaves the image of 128 x 128"):
        edit(pipe, inversion, TARGET, method=editing.Region(((0, 0, 200, 64),)), **EXACT)


def test_reconstruct_takes_another_prompt_without_a_warning(pipe, inversion, recwarn):
    found = reconstruct(pipe, inversion, prompt=TARGET, negative_prompt="blue", guidance_scale=SCALE, **EXACT)
    wanted = edit(pipe, inversion, TARGET, negative_prompt="blue", guidance_scale=SCALE, **EXACT)
    assert torch.equal(found.latents, wanted.latents)
    assert not [each for each in recwarn if "inversion was made with" in str(each.message)]
    with pytest.raises(ValueError, match="prompt has 3 texts for 2 images"):
        reconstruct(pipe, inversion, prompt=["a", "b", "c"])
    with pytest.raises(ValueError, match="not both"):
        reconstruct(pipe, inversion, prompt="a", prompt_embeds=torch.zeros(1, 12, 32))


@pytest.mark.parametrize("editor", [editing.PromptToPrompt(), editing.Direct()])
def test_edits_are_captured(pipe, monkeypatch, editor):
    recorder = Recorder()
    monkeypatch.setattr(run, "cuda_graphs", lambda device: recorder)
    monkeypatch.setattr(Denoiser, "uncapturable", None)
    release()
    x = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(4))
    options = {"num_inference_steps": 6, "runtime": "eager", "save_trajectory": True}
    there = invert(pipe, x, SOURCE, method="ddim", cuda_graph=False, **options)
    given = {"method": editor, "runtime": "eager", "output_type": "latent"}
    for _ in range(2):
        found = edit(pipe, there, TARGET, **given)
        assert found.stats.cuda_graph
        assert torch.equal(found.latents, edit(pipe, there, TARGET, cuda_graph=False, **given).latents)
    assert recorder.made
    release()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["prompt_to_prompt", "masactrl"])
def test_edits_are_compiled(pipe, inversion, name):
    options = {"method": name, "output_type": "latent", "dtype": "float64"}
    eager, compiled = (edit(pipe, inversion, TARGET, runtime=r, **options) for r in ("eager", "compile"))
    assert compiled.stats.runtime == "compile"
    # The sinusoids of times are float32 in diffusers whatever the network is, and Inductor rounds them otherwise: one
    # evaluation of the plain UNet is 4e-8 off. Another token or row would be 1e-2.
    assert distance(compiled.latents, eager.latents) < 1e-8


def test_other_families():
    xl = networks.stable_diffusion_xl()
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    for pipe, latents in ((xl, x), (stable_diffusion_3(), x.repeat(1, 4, 1, 1))):
        there = invert(pipe, latents, SOURCE, method="ddim", num_inference_steps=3, runtime="eager", dtype="float64")
        name = "masactrl" if pipe is xl else "prompt"
        same = edit(pipe, there, SOURCE, method=name, guidance_scale=1.0, **EXACT).latents
        assert distance(same, reconstruct(pipe, there, **EXACT).latents) < 1e-11
        assert distance(edit(pipe, there, TARGET, method=name, **EXACT).latents, same) > 1e-4


def test_flow_edit():
    pipe = stable_diffusion_3()
    x = torch.randn(1, 16, 4, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    there = invert(pipe, x, SOURCE, method="ddim", num_inference_steps=4, runtime="eager", dtype="float64")
    method = editing.FlowEdit(strength=0.75, source_guidance=1.5, seed=3)
    found = edit(pipe, there, TARGET, method=method, guidance_scale=4.0, **EXACT)
    network = type(pipe.transformer).from_config(pipe.transformer.config).double().eval()
    network.load_state_dict(pipe.transformer.state_dict())

    @torch.no_grad()
    def velocity(latents, sigma, which):
        text, scale = {"source": (SOURCE, 1.5), "target": (TARGET, 4.0)}[which]
        outputs = []
        for said in (text, ""):
            embeds, _, pooled, _ = pipe.encode_prompt(said, said, said, do_classifier_free_guidance=False)
            t = torch.tensor([1000 * sigma], dtype=torch.float64)
            outputs.append(network(latents, embeds.double(), pooled.double(), t, return_dict=False)[0])
        return outputs[1] + scale * (outputs[0] - outputs[1])

    drawn = torch.randn(1, 3, *x.shape[1:], generator=torch.Generator().manual_seed(3)).double().unbind(1)
    sigmas = there.schedule.sigma.tolist()[3::-1]
    assert distance(found.latents, reference.flow_edit(velocity, x, sigmas, drawn[::-1])) < 1e-10
    same = edit(pipe, there, SOURCE, method="flow_edit", guidance_scale=3.5, **EXACT)
    assert distance(same.latents, x) < 1e-12
    left = torch.zeros(1, 6).repeat(4, 1)
    left[:, :3] = 1
    part = edit(pipe, there, TARGET, method=method, guidance_scale=4.0, mask=left, **EXACT).latents
    assert torch.equal(part[..., 3:], x[..., 3:])  # the image itself, not its noisy way up
    assert not torch.equal(part[..., :3], x[..., :3])
    several = editing.FlowEdit(strength=0.5, draws=3)
    averaged, single = (edit(pipe, there, TARGET, method=m, **EXACT).latents for m in (several, editing.FlowEdit(0.5)))
    assert averaged.isfinite().all()
    assert distance(averaged, single) > 1e-3


class Watching:
    """A processor of the caller's."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
        return attention.AttnProcessor2_0()(attn, hidden_states, encoder_hidden_states, attention_mask, temb)


def test_what_cannot_be_edited_is_said(pipe, inversion, samples):
    def refused(match, *args, error=ValueError, **options):
        with pytest.raises(error, match=match):
            edit(pipe, *args, **options)

    refused("what invert.. returns", inversion.latents, TARGET, error=TypeError)
    refused("unknown editing method 'masa'", inversion, TARGET, method="masa")
    refused("editor's name", inversion, TARGET, method=3, error=TypeError)
    refused("3 texts for 2 images", inversion, ["a", "b", "c"])
    refused("must be a finite number", inversion, TARGET, guidance_scale=-1)
    refused("unknown output_type", inversion, TARGET, output_type="jpg")
    refused("FlowEdit is for rectified flow", inversion, TARGET, method="flow_edit")
    refused("style goes with", inversion, TARGET, method="portrait")
    refused("style must be inverted like", inversion, TARGET, method="portrait", style=inversion[0])
    refused("mask has 3 masks", inversion, TARGET, mask=torch.zeros(3, 1, 8, 8))
    refused("must lie in .0, 1.", inversion, TARGET, mask=torch.full((8, 8), torch.nan))
    refused("mask must be an image", inversion, TARGET, mask=3, error=TypeError)
    refused("does not exist", inversion, TARGET, mask="no.png", error=FileNotFoundError)
    refused("one size", inversion, TARGET, mask=[torch.zeros(8, 8), torch.zeros(4, 4)])
    x = inversion.init_latents
    options = {"num_inference_steps": 3, "runtime": "eager"}
    refused("save_trajectory=True", invert(pipe, x, SOURCE, method="ddim", **options), TARGET, method="direct")
    tuned = invert(pipe, x[:1], SOURCE, method="negative_prompt", **options)
    refused("embeddings tuned to the source", tuned, TARGET, method="masactrl")
    jumped = invert(pipe, x, SOURCE, method="forward_start", save_trajectory=True, **options)
    refused("left some out", jumped, TARGET, mask=torch.ones(8, 8))
    embeds = torch.zeros(1, 12, 32)
    refused("made with prompt_embeds", invert(pipe, x, None, prompt_embeds=embeds, method="ddim", **options), TARGET)


def test_attention_that_cannot_be_shared_is_said(samples):
    pipe = sixteen()
    x = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3))
    there = invert(pipe, x, SOURCE, method="ddim", num_inference_steps=2, runtime="eager")
    pipe.unet.set_attn_processor(Watching())
    with pytest.raises(ValueError, match=r"processors of its own \(Watching\)"):
        edit(pipe, there, TARGET, method="masactrl")
    edit(pipe, there, TARGET, method="prompt", runtime="eager")  # they stay, and look on
    flow, qwen = stable_diffusion_3(), qwen_image()
    there = invert(flow, x.repeat(1, 4, 1, 1), SOURCE, method="ddim", num_inference_steps=2, runtime="eager")
    with pytest.raises(ValueError, match="no UNet alone"):
        edit(flow, there, TARGET, method="masactrl")
    there = invert(qwen, x.repeat(1, 4, 1, 1)[:, :16, :8, :8], SOURCE, method="ddim", num_inference_steps=2)
    with pytest.raises(ValueError, match="by a norm"):
        edit(qwen, there, TARGET, method="flow_edit")


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: editing.MasaCtrl(step=-1), "MasaCtrl step must be an integer of at least 0"),
        (lambda: editing.MasaCtrl(layer=1.5), "MasaCtrl layer"),
        (lambda: editing.PromptToPrompt("swap"), "unknown PromptToPrompt kind 'swap'"),
        (lambda: editing.PromptToPrompt(cross=1.5), "cross must lie in"),
        (lambda: editing.PromptToPrompt(weights=(("a", -1),)), "factor of at least 0"),
        (lambda: editing.Portrait(blend=2), "blend must lie in"),
        (lambda: editing.Direct(editing.Prompt()), "takes nothing from one"),
        (lambda: editing.Direct(editing.FlowEdit()), "takes nothing from one"),
        (lambda: editing.Direct(editing.Region(((0, 0, 4, 8),), editing.MasaCtrl())), "Region around Direct"),
        (lambda: editing.Region(((0, 0, 4, 8),), editing.Region(((0, 0, 4, 8),))), "all boxes to one Region"),
        (lambda: editing.Region(()), "at least one box"),
        (lambda: editing.Region(((4, 0, 4, 8),)), "left < right"),
        (lambda: editing.FlowEdit(strength=0), "strength must lie in"),
        (lambda: editing.FlowEdit(draws=0), "draws must be an integer"),
    ],
)
def test_settings_are_checked(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def test_the_pipeline_is_left_alone(pipe, inversion):
    before = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
    processors = dict(pipe.unet.attn_processors)
    edit(pipe, inversion, TARGET, method="masactrl", **EXACT)
    assert all(torch.equal(value, before[name]) for name, value in pipe.unet.state_dict().items())
    assert all(pipe.unet.attn_processors[name] is each for name, each in processors.items())
