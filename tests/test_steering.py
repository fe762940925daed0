"""Images that steer the network, of IP-Adapters and ControlNets: diffusers' own steps, what changes is noticed, what is
missing is refused.
"""

import gc
import weakref

import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    DDIMInverseScheduler,
    MultiControlNetModel,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLControlNetPipeline,
)
from diffusers.models.embeddings import IPAdapterFaceIDImageProjection, IPAdapterFaceIDPlusImageProjection
from families import LCM
from PIL import Image
from test_second_call import counted  # noqa: F401
from tiny import stable_diffusion, stable_diffusion_xl
from tiny_steering import WIDTH, controlnet, drawn, with_controlnets, with_image_prompts
from toy import distance

from invfast import Inversion, Schedule, adapters, invert, metrics, prepare, reconstruct
from invfast.methods import FixedPoint
from invfast.store import READY

PROMPTS = ["a peach", "a cat"]
STEPS = {"method": "ddim", "num_inference_steps": 3, "runtime": "eager"}
pytestmark = pytest.mark.filterwarnings("ignore:inverting at guidance_scale")


def picture(seed: int, side: int = 40) -> Image.Image:
    return Image.fromarray((drawn([seed], side, side, 3)[0] * 255).byte().numpy())


def one_of_each():
    return with_image_prompts(lambda: with_controlnets(StableDiffusionControlNetPipeline))


PLUS, CONTROL = ("plain", "plus"), drawn([0, 1], 3, 64, 80)
SHOWN = {"ip_adapter_image": picture(1)}
MORE = {"ip_adapter_image": [[picture(1), picture(2)], picture(3)]}
STEERED = {"control_image": CONTROL, "controlnet_conditioning_scale": 0.7}
SEVERAL = {"control_image": [CONTROL, picture(4)], "controlnet_conditioning_scale": [0.7, 0.4]}
XL = StableDiffusionXLControlNetPipeline
CASES = {
    "IP-Adapter": (with_image_prompts, SHOWN),
    "two IP-Adapters": (lambda: with_image_prompts(kinds=PLUS), MORE),
    "IP-Adapter, XL": (lambda: with_image_prompts(stable_diffusion_xl), SHOWN),
    "two IP-Adapters, XL": (lambda: with_image_prompts(stable_diffusion_xl, PLUS), MORE),
    "ControlNet": (lambda: with_controlnets(StableDiffusionControlNetPipeline), STEERED),
    "two ControlNets": (lambda: with_controlnets(StableDiffusionControlNetPipeline, count=2), SEVERAL),
    "ControlNet, XL": (lambda: with_controlnets(XL, stable_diffusion_xl), STEERED),
    "two ControlNets, XL": (lambda: with_controlnets(XL, stable_diffusion_xl, 2), SEVERAL),
    "both": (one_of_each, {**SHOWN, **STEERED}),
}


def made(case: str, steepness: float = 0.1):
    """A pipeline and what it is told; less steep, as trained networks are."""
    make, told = CASES[case]
    pipe = make()
    pipe.unet.conv_out.weight.data *= steepness
    return pipe, told


@pytest.fixture
def latents():
    return torch.randn(2, 4, 8, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def told_by(pipe, x, guided):
    """Embeddings and added conditions of the pipeline's own, negative ones first."""
    if not hasattr(pipe, "text_encoder_2"):
        found = [pipe.encode_prompt(text, "cpu", 1, guided) for text in PROMPTS]
        return torch.cat([each[j] for j in ((1, 0) if guided else (0,)) for each in found]), {}
    found = [pipe.encode_prompt(text, None, "cpu", 1, guided) for text in PROMPTS]
    embeds, pooled = (
        torch.cat([each[j] for j in (order if guided else order[1:]) for each in found]) for order in ((1, 0), (3, 2))
    )
    size = tuple(8 * side for side in x.shape[2:])
    ids = pipe._get_add_time_ids(size, (0, 0), size, dtype=torch.float32, text_encoder_projection_dim=16)
    return embeds, {"text_embeds": pooled, "time_ids": ids.repeat(len(pooled), 1)}


def residuals(pipe, rows, t, embeds, added, told, guided):
    """What the ControlNets add, as the pipeline's own call has it."""
    several = isinstance(pipe.controlnet, MultiControlNetModel)
    shown = [
        pipe.prepare_image(each, 80, 64, len(PROMPTS), 1, "cpu", rows.dtype, guided)
        for each in (told["control_image"] if several else [told["control_image"]])
    ]
    added = {name: value for name, value in added.items() if name != "image_embeds"}
    down, mid = pipe.controlnet(
        rows, t, encoder_hidden_states=embeds, controlnet_cond=shown if several else shown[0],
        conditioning_scale=told["controlnet_conditioning_scale"], added_cond_kwargs=added or None, return_dict=False,
    )  # fmt: skip
    return {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}


@torch.no_grad()
def by_hand(pipe, x, steps, scale, told):
    """Every latent of a loop on diffusers' scheduler and the pipeline's own pieces, as its __call__ has them."""
    guided, dtype, found = scale > 1, x.dtype, [x]
    embeds, added = told_by(pipe, x, guided)
    if "ip_adapter_image" in told:
        given = told["ip_adapter_image"], None, "cpu", len(x), guided
        added["image_embeds"] = pipe.prepare_ip_adapter_image_embeds(*given)
    scheduler = DDIMInverseScheduler.from_config(pipe.scheduler.config)
    for name in ("alphas_cumprod", "initial_alpha_cumprod"):
        setattr(scheduler, name, torch.as_tensor(getattr(scheduler, name)).to(dtype))
    scheduler.set_timesteps(steps)
    cast = lambda value: [each.to(dtype) for each in value] if isinstance(value, list) else value.to(dtype)  # noqa: E731
    embeds, added = embeds.to(dtype), {name: cast(value) for name, value in added.items()}
    networks = [part.to(dtype) for part in (pipe.unet, getattr(pipe, "controlnet", None)) if part is not None]
    for t in scheduler.timesteps:
        rows = torch.cat([x] * 2) if guided else x
        more = residuals(pipe, rows, t, embeds, added, told, guided) if len(networks) > 1 else {}
        out = pipe.unet(rows, t, embeds, added_cond_kwargs=added or None, **more).sample
        if guided:
            without, given = out.chunk(2)
            out = without + scale * (given - without)
        x = scheduler.step(out, t, x).prev_sample
        found.append(x)
    for part in networks:
        part.to(torch.float32)
    return torch.stack(found)


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("case", CASES)
def test_is_a_loop_on_diffusers_own_pieces(case, scale, latents):
    pipe, told = made(case)
    grid = Schedule.from_scheduler(pipe.scheduler, 4, compat="diffusers")
    given = {"method": "ddim", "schedule": grid, "guidance_scale": scale, "save_trajectory": True, **told}
    found = invert(pipe, latents, PROMPTS, dtype="float64", precompute=(), **given)
    single = invert(pipe, latents.float(), PROMPTS, runtime="eager", **given)
    wanted = by_hand(pipe, latents, 4, scale, told)
    for a, b, c in zip(found.trajectory, single.trajectory, wanted, strict=True):
        assert distance(a, c) < 1e-10
        assert distance(b, c) < 1e-5


EXACT = {"method": FixedPoint(40, "anderson", tolerance=1e-11), "num_inference_steps": 4, "dtype": "float64"}


@pytest.mark.parametrize("scale", [1.0, 2.0])
@pytest.mark.parametrize("case", ["IP-Adapter", "IP-Adapter, XL", "ControlNet", "ControlNet, XL", "two ControlNets"])
def test_there_and_back_and_through_the_pipeline_itself(case, scale, samples, tmp_path):
    pipe, told = made(case, 0.01)
    pictures = [samples["peach"].image.resize((80, 64)), samples["cat"].image.resize((80, 64))]
    exact = EXACT if scale == 1 else {**EXACT, "method": "ddim"}
    there = invert(pipe, pictures, PROMPTS, guidance_scale=scale, **told, **exact)
    assert set(there.conditions) == {"controlnet_conditioning_scale"} & set(told)
    there.save(tmp_path / "two")
    there = Inversion.load(tmp_path / "two")
    again = {name: value for name, value in told.items() if "image" in name}
    back = reconstruct(pipe, there, output_type="pt", **again)
    assert scale > 1 or distance(back.latents, there.init_latents) < 1e-7
    own = dict(told)
    if "control_image" in own:
        own["image"] = own.pop("control_image")
    images = pipe(
        prompt=PROMPTS, latents=there.latents.float(), guidance_scale=scale, num_inference_steps=4, height=64,
        width=80, output_type="pt", **own,
    ).images  # fmt: skip
    assert metrics.psnr(torch.as_tensor(images), back.images).min() > 50


def test_images_and_their_embeddings_are_one(latents):
    pipe, shown = with_image_prompts(kinds=PLUS), MORE["ip_adapter_image"]
    for scale in (1.0, 3.0):
        embeds = pipe.prepare_ip_adapter_image_embeds(shown, None, "cpu", 1, scale > 1)
        given = {**STEPS, "guidance_scale": scale}
        found = invert(pipe, latents, PROMPTS, ip_adapter_image_embeds=embeds, **given)
        assert torch.equal(found.latents, invert(pipe, latents, PROMPTS, ip_adapter_image=shown, **given).latents)
        assert found.conditions == {}


def test_embeddings_one_an_image_and_the_negative_ones_first(latents):
    pipe, rows = with_image_prompts(), drawn([1, 2], 1, WIDTH)
    negative = drawn([3, 4], 1, WIDTH)
    both = torch.cat([negative, rows])
    every = invert(pipe, latents, PROMPTS, ip_adapter_image_embeds=[both], guidance_scale=3.0, dtype="float64", **STEPS)
    for j in range(2):
        own = [torch.cat([negative[j : j + 1], rows[j : j + 1]])]
        given = {"ip_adapter_image_embeds": own, "guidance_scale": 3.0, "dtype": "float64", **STEPS}
        one = invert(pipe, latents[j : j + 1], PROMPTS[j], **given)
        assert distance(one.latents, every.latents[j : j + 1]) < 1e-6
    other = [torch.cat([torch.zeros_like(negative), rows])]
    found = invert(pipe, latents, PROMPTS, ip_adapter_image_embeds=other, guidance_scale=3.0, dtype="float64", **STEPS)
    assert not torch.equal(found.latents, every.latents)
    faces = with_image_prompts()
    faces.unet.encoder_hid_proj.image_projection_layers[0] = IPAdapterFaceIDImageProjection(WIDTH, 32, 1, 4)
    given = [invert(faces, latents, PROMPTS, ip_adapter_image_embeds=[x], **STEPS) for x in (rows, rows.unsqueeze(2))]
    assert torch.equal(given[0].latents, given[1].latents)


def test_lists_of_images_for_several_controlnets(latents):
    """One list an image, as diffusers has them, is one batch a ControlNet."""
    pipe = with_controlnets(StableDiffusionControlNetPipeline, count=2)
    first, second = [picture(1), picture(2)], [picture(3), picture(4)]
    lists = [list(pair) for pair in zip(first, second, strict=True)]
    found = invert(pipe, latents, PROMPTS, control_image=lists, **STEPS)
    resized = [[each.resize((80, 64), Image.Resampling.LANCZOS) for each in every] for every in (first, second)]
    arrays = [np.stack([np.asarray(each) for each in every]).astype("float32") / 255 for every in resized]
    assert distance(invert(pipe, latents, PROMPTS, control_image=arrays, **STEPS).latents, found.latents) < 1e-6
    assert found.conditions == {"controlnet_conditioning_scale": [1.0, 1.0]}


def steered():
    return with_controlnets(StableDiffusionControlNetPipeline)


def test_what_changes_between_calls_is_noticed(latents):
    pipe, given = steered(), {**STEPS, **STEERED, "dtype": "float64"}  # copies, which could be old ones
    there = invert(pipe, latents, PROMPTS, **given)
    kept = adapters.resolve(pipe)(pipe).read["network"].module
    assert torch.equal(invert(pipe, latents, PROMPTS, **given).latents, there.latents)
    pipe.controlnet.controlnet_mid_block.weight.data.mul_(1.5)
    changed = invert(pipe, latents, PROMPTS, **given)
    assert distance(changed.latents, there.latents) > 1e-6
    assert adapters.resolve(pipe)(pipe).read["network"].module is kept
    with pytest.warns(UserWarning, match="the network's weights are not what the inversion was made with"):
        reconstruct(pipe, there, control_image=CONTROL, output_type="latent")
    pipe.register_modules(controlnet=controlnet(pipe.unet))
    assert distance(invert(pipe, latents, PROMPTS, **given).latents, changed.latents) > 1e-6
    assert adapters.resolve(pipe)(pipe).read["network"].module is not kept


def test_the_scale_of_an_ip_adapter_is_the_callers(latents):
    pipe = with_image_prompts()
    there = invert(pipe, latents, PROMPTS, **SHOWN, **STEPS)
    pipe.set_ip_adapter_scale(0.3)
    assert distance(invert(pipe, latents, PROMPTS, **SHOWN, **STEPS).latents, there.latents) > 1e-4
    with pytest.warns(UserWarning, match=r"the network's settings \(an adapter's scale"):
        reconstruct(pipe, there, **SHOWN, output_type="latent")
    pipe.set_ip_adapter_scale(0.0)
    nothing = invert(pipe, latents, PROMPTS, **SHOWN, **STEPS).latents
    assert distance(nothing, invert(stable_diffusion(), latents, PROMPTS, **STEPS).latents) < 1e-5


@pytest.mark.parametrize("case", ["IP-Adapter", "ControlNet"])
def test_the_way_back_asks_for_the_images_again(case, latents):
    pipe, told = made(case)
    there = invert(pipe, latents, PROMPTS, **told, **STEPS)
    name = "ip_adapter_image" if "ip_adapter_image" in told else "control_image"
    with pytest.raises(ValueError, match=f"this {type(pipe).__name__} .*needs {name}"):
        reconstruct(pipe, there)
    with pytest.warns(UserWarning, match=r"other conditions \(pooled embeddings, sizes, labels, images\) are not what"):
        reconstruct(pipe, there, **{name: picture(9)}, output_type="latent")
    if name == "control_image":
        with pytest.warns(UserWarning, match="the other conditions"):
            reconstruct(pipe, there, **{**told, "controlnet_conditioning_scale": 0.1}, output_type="latent")


def test_how_much_a_controlnet_counts_is_the_pipelines_default(latents):
    pipe = steered()
    other = with_controlnets(StableDiffusionControlNetImg2ImgPipeline)
    found, less = (invert(each, latents, PROMPTS, control_image=CONTROL, **STEPS) for each in (pipe, other))
    assert found.conditions == {"controlnet_conditioning_scale": [1.0]}
    assert less.conditions == {"controlnet_conditioning_scale": [0.8]}
    wanted = invert(pipe, latents, PROMPTS, control_image=CONTROL, controlnet_conditioning_scale=0.8, **STEPS)
    assert torch.equal(less.latents, wanted.latents)


def test_a_second_call_makes_nothing(counted, latents):  # noqa: F811
    pipe, given = steered(), {**STEPS, **STEERED, "dtype": "bfloat16"}
    invert(pipe, latents.float(), PROMPTS, **given)
    before = dict(counted)
    invert(pipe, latents.float(), PROMPTS, **given)
    done = {name: counted[name] - before[name] for name in counted}
    assert done == {"outlines": 0, "copies": 0, "conversions": 0, "checksums": 1, "walks": 0}


def test_a_pipeline_and_its_controlnet_go_with_their_last_user(latents):
    pipe = steered()
    there = invert(pipe, latents.float(), PROMPTS, **STEERED, **STEPS, dtype="bfloat16")
    reconstruct(pipe, there, control_image=CONTROL)
    assert READY.contents()
    gone = [weakref.ref(each) for each in (pipe, pipe.unet, pipe.controlnet, pipe.controlnet.conv_in.weight)]
    del pipe
    gc.collect()
    assert [each() for each in gone] == [None] * 4


def test_hooks_of_the_controlnet_are_called(latents):
    pipe, seen = steered(), []
    wanted = invert(pipe, latents, PROMPTS, **STEERED, **STEPS).latents
    pipe.controlnet.mid_block.register_forward_hook(lambda module, given, out: seen.append(out.shape))
    found = invert(pipe, latents, PROMPTS, **STEERED, **STEPS)
    assert len(seen) == 3
    assert distance(found.latents, wanted) < 1e-6


def test_methods_of_text(latents):
    """Null-text differentiates through ControlNets; one branch for both is possible where images are in both."""
    pipe, x = steered(), latents[:1].float()
    given = {"num_inference_steps": 2, "control_image": CONTROL[:1]}
    for method in ("null_text", "negative_prompt", "direct"):
        there = invert(pipe, x, "a cat", method=method, **given)
        assert reconstruct(pipe, there, control_image=CONTROL[:1], output_type="latent").latents.isfinite().all()
    prompted = with_image_prompts()
    there = invert(prompted, x, "a cat", method="null_text", num_inference_steps=2, **SHOWN)
    assert reconstruct(prompted, there, output_type="latent", **SHOWN).latents.isfinite().all()
    with pytest.raises(ValueError, match="this network's differ in image_embeds_0 too"):
        invert(prompted, x, "a cat", method="negative_prompt", num_inference_steps=2, **SHOWN)


def test_what_cannot_serve_it_says_why(latents):
    x = latents[:1].float()
    with pytest.raises(
        ValueError, match=r"precompute='prompt' is unavailable: UNetWithControlNet is no UNet2DConditionModel"
    ):
        invert(steered(), x, precompute=["prompt"], control_image=CONTROL[:1])
    with pytest.raises(ValueError, match=r"precompute='prompt' is unavailable: it projects its embeddings first"):
        invert(with_image_prompts(), x, precompute=["prompt"], **SHOWN)
    with pytest.raises(ValueError, match=r"dtype='int8' is unavailable: .* takes a control image too"):
        invert(steered(), x, dtype="int8", runtime="openvino", control_image=CONTROL[:1])
    with pytest.raises(ValueError, match=r"dtype='int8' is unavailable: .* takes images too"):
        invert(with_image_prompts(), x, dtype="int8", runtime="openvino", **SHOWN)
    assert prepare(steered(), height=64, width=64, runtime="eager", control_image=picture(1)).runtime == "eager"


IMAGES = drawn([1, 2, 3], 3, 64, 80)
ROWS = drawn([1, 2], 1, WIDTH)
REFUSED = {
    "no images": (with_image_prompts, {}, "has an IP-Adapter and needs ip_adapter_image or ip_adapter_image_embeds"),
    "both": (with_image_prompts, {**SHOWN, "ip_adapter_image_embeds": [ROWS]}, "got both; pass one of them"),
    "no adapter": (stable_diffusion, SHOWN, "is for an IP-Adapter, and this StableDiffusionPipeline has none"),
    "entries": (with_image_prompts, MORE, "ip_adapter_image has 2 entries for 1 IP-Adapters; pass a list of one an"),
    "path": (with_image_prompts, {"ip_adapter_image": "x.png"}, r"ip_adapter_image\[0\] must be an image .* got str"),
    "none of them": (with_image_prompts, {"ip_adapter_image": [[]]}, "must be an image .* got an empty list"),
    "no tensor": (with_image_prompts, {"ip_adapter_image_embeds": [3]}, r"\(1 or 2, images, 24\), got int"),
    "width": (with_image_prompts, {"ip_adapter_image_embeds": [ROWS[..., :9]]}, r"images, 24\), got \(2, 1, 9\)"),
    "rows": (with_image_prompts, {"ip_adapter_image_embeds": [drawn([1] * 3, 1, 24)]}, r"\(1 or 2, images, 24\), got"),
    "halves": (
        with_image_prompts,
        {"ip_adapter_image_embeds": [ROWS[:1]], "guidance_scale": 2.0},
        r"must have 2 or 4 rows under guidance, the negative ones first as in diffusers, got \(1, 1, 24\)",
    ),
    "no control image": (steered, {}, "needs control_image, what its ControlNet is shown; pass it, or the pipeline"),
    "no ControlNet": (stable_diffusion, STEERED, "control_image is for a ControlNet, and this StableDiffusionPipeline"),
    "count": (steered, {"control_image": IMAGES}, r"control_image must be .* \(1 or 2, 3, 64, 80\), got \(3, 3, 64"),
    "control path": (steered, {"control_image": "x.png"}, r"control_image must be an image .* got str"),
    "control matrix": (steered, {"control_image": torch.zeros(8, 8)}, "control_image cannot be read: Input and output"),
    "channels": (steered, {"control_image": IMAGES[:2, :1]}, r"\(1 or 2, 3, 64, 80\), got \(2, 1, 64, 80\)"),
    "scale": (steered, {**STEERED, "controlnet_conditioning_scale": "1"}, "must be a finite number, or a list of 1"),
    "scales": (steered, {**STEERED, "controlnet_conditioning_scale": [1.0, 2.0]}, "must be a finite number, or a list"),
    "end": (steered, {**STEERED, "control_guidance_end": 0.5}, "control_guidance_end=0.5 would leave the ControlNet"),
    "start": (steered, {**STEERED, "control_guidance_start": [0.1]}, r"control_guidance_start=\[0.1\] would leave"),
    "guess": (steered, {**STEERED, "guess_mode": True}, "guess_mode=True would leave .* leave it at False"),
    "one for two": (
        lambda: with_controlnets(StableDiffusionControlNetPipeline, count=2),
        STEERED | {"control_image": [picture(1)]},
        "control_image must have one entry for each of 2 ControlNets, .* got 1",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_used_is_refused(case, latents, monkeypatch):
    make, given, said = REFUSED[case]
    pipe = make()
    for part in (pipe.unet, getattr(pipe, "controlnet", pipe.unet)):
        monkeypatch.setattr(type(part), "forward", lambda *given, **named: pytest.fail("the network ran"))
    with pytest.raises((ValueError, TypeError), match=said):
        invert(pipe, latents, PROMPTS, **given)


def faces(plus: bool):
    pipe = with_image_prompts()
    layer = IPAdapterFaceIDPlusImageProjection if plus else IPAdapterFaceIDImageProjection
    with torch.device("meta"):
        pipe.unet.encoder_hid_proj.image_projection_layers[0] = layer()
    return pipe


def no_encoder():
    pipe = with_image_prompts()
    pipe.image_encoder = None
    return pipe


def other(**config):
    pipe = steered()
    net = ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(8, 8, 8, 16))
    net.register_to_config(**config)
    pipe.register_modules(controlnet=net)
    return pipe


def half():
    pipe = steered()
    pipe.controlnet.to(torch.bfloat16)
    return pipe


def no_guidance_input():
    return with_controlnets(StableDiffusionControlNetImg2ImgPipeline, LCM)


def no_controlnet():
    pipe = steered()
    pipe.register_modules(controlnet=torch.nn.Conv2d(1, 1, 1))
    return pipe


UNFIT = {
    "faces and CLIP": (lambda: faces(True), SHOWN, "has a IPAdapterFaceIDPlusImageProjection, which reads more than"),
    "faces": (lambda: faces(False), SHOWN, "told by their embeddings; pass ip_adapter_image_embeds"),
    "no encoder": (no_encoder, SHOWN, "cannot be encoded: the pipeline has no image_encoder; pass ip_adapter_image_em"),
    "pooled": (lambda: other(global_pool_conditions=True), STEERED, "pools its conditions"),
    "of another": (lambda: other(cross_attention_dim=64), STEERED, "has cross_attention_dim 64 and its unet 32; load"),
    "dtype": (half, STEERED, "is torch.bfloat16 and its unet torch.float32; load both in one dtype"),
    "factor": (lambda: other(conditioning_embedding_out_channels=(8, 8, 8)), STEERED, "halves images to 1/4, its vae"),
    "LCM": (no_guidance_input, STEERED, "takes the guidance as an input, as LCMs do, and its class gives none"),
    "no ControlNetModel": (no_controlnet, STEERED, "its controlnet is a Conv2d; use a ControlNetModel"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_parts_that_do_not_fit_are_refused(case, latents):
    make, given, said = UNFIT[case]
    with pytest.raises(ValueError, match=said):
        invert(make(), latents, PROMPTS, **given)


@pytest.mark.parametrize("make", [LCM, lambda: with_controlnets(StableDiffusionControlNetPipeline, LCM)])
def test_consistency_models(make, latents):
    """The guidance is an input and there is one branch: images are shown to that."""
    pipe = with_image_prompts(make)
    told = SHOWN | (STEERED if hasattr(pipe, "controlnet") else {})
    there = invert(pipe, latents, PROMPTS, guidance_scale=3.0, **told, **STEPS)
    other = invert(pipe, latents, PROMPTS, guidance_scale=3.0, **told | {"ip_adapter_image": picture(7)}, **STEPS)
    assert distance(there.latents, other.latents) > 1e-6
    assert reconstruct(pipe, there, output_type="latent", **told).latents.isfinite().all()


def test_without_its_controlnet_a_pipeline_comes_in(latents):
    pipe = steered()
    plain = StableDiffusionPipeline.from_pipe(pipe)
    found = invert(plain, latents, PROMPTS, **STEPS).latents
    unheard = {**STEERED, "controlnet_conditioning_scale": 0}
    assert distance(found, invert(pipe, latents, PROMPTS, **unheard, **STEPS).latents) < 1e-5
