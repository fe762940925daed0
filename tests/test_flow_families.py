"""Pipelines of rectified flow: their conditions are diffusers' own, their steps a loop on diffusers' scheduler."""

import dataclasses

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler, attention_backend
from families import FAMILIES
from own_calls import PROMPTS, asking_flux, asking_qwen, asking_sana, asking_sd3, asking_z_image, mu_of
from recorded import Recorder
from tiny import stable_diffusion
from tiny_transformers import flux, qwen_image, sana, stable_diffusion_3, z_image
from toy import distance

from invfast import Inversion, adapters, grids, invert, metrics, reconstruct, release, run
from invfast.denoiser import Denoiser
from invfast.methods import FixedPoint

EXACT = {"method": FixedPoint(60, "anderson", tolerance=1e-13), "num_inference_steps": 4, "dtype": "float64"}
FLOW = {
    "Stable Diffusion 3, 3.5": stable_diffusion_3,
    "FLUX.1 (dev, schnell)": flux,
    "Qwen-Image": qwen_image,
    "Z-Image (Turbo)": z_image,
    "Sana": sana,
}
pytestmark = pytest.mark.filterwarnings("ignore:inverting at guidance_scale")


@pytest.fixture(params=[(8, 12), pytest.param((10, 6), marks=pytest.mark.slow)], ids=str)
def latents(request):
    """Of sizes whose token counts, and so shifts, differ."""
    return torch.randn(2, 16, *request.param, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


CASES = {
    "sd3": (stable_diffusion_3, asking_sd3),
    "sd3, dynamic shift": (
        lambda: stable_diffusion_3(scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)),
        asking_sd3,
    ),
    "sd3 without t5": (lambda: stable_diffusion_3(third=False), asking_sd3),
    "flux dev": (flux, asking_flux),
    "flux schnell": (
        lambda: flux(scheduler=FlowMatchEulerDiscreteScheduler(), guidance_embeds=False),
        asking_flux,
    ),
    "qwen": (qwen_image, asking_qwen),
    "z-image": (z_image, asking_z_image),
    "sana": (sana, asking_sana),
}
NEGATIVE = {name: ["", "none"] for name in ("qwen", "z-image", "sana")}


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("case", CASES)
def test_is_a_loop_on_diffusers_own_pieces(case, scale, latents):
    make, asking = CASES[case]
    pipe = make()
    given = {"method": "ddim", "num_inference_steps": 5, "guidance_scale": scale, "save_trajectory": True}
    given |= {"negative_prompt": NEGATIVE.get(case)}
    exact = invert(pipe, latents, PROMPTS, dtype="float64", **given).trajectory
    single = invert(pipe, latents.float(), PROMPTS, runtime="eager", **given).trajectory
    with torch.no_grad():  # attention is another kernel where gradients are asked for
        ask, scheduler = asking(pipe, latents, scale)
    pipe.transformer.double()
    x = latents
    for k in range(4, -1, -1):  # the scheduler's own step, undone
        scheduler._step_index, t = k, scheduler.timesteps[k]
        with torch.no_grad():
            v = ask(x, t)
        forward = scheduler.step(v.float(), t, x.float(), return_dict=False)[0] - x.float()  # it computes in float32
        wanted = x - (scheduler.sigmas.double()[k + 1] - scheduler.sigmas.double()[k]) * v
        assert distance(x.float() - forward, wanted) < 1e-6
        assert distance(exact[5 - k], wanted) < 1e-10
        assert distance(single[5 - k], wanted) < 1e-5
        x = exact[5 - k]


def own_call(pipe, found, scale):
    latents = found.latents.float()
    b, c, h, w = latents.shape
    given = {"height": 8 * h, "width": 8 * w, "num_inference_steps": 4, "guidance_scale": scale, "output_type": "pt"}
    if type(pipe).__name__.startswith(("Flux", "Qwen")):
        latents = pipe._pack_latents(latents, b, c, h, w)
    if "Qwen" in type(pipe).__name__:
        given |= {"true_cfg_scale": given.pop("guidance_scale"), "negative_prompt": [""] * b}
    if "Sana" in type(pipe).__name__:
        given["use_resolution_binning"] = False
    if "ZImage" in type(pipe).__name__ and scale == 1:
        given["guidance_scale"] = 0.0
    return pipe(list(PROMPTS), latents=latents, **given).images


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("name", FLOW)
def test_there_and_back_and_through_the_pipeline_itself(name, scale, samples, tmp_path):
    pipe = FLOW[name]()
    pictures = [samples["peach"].image.resize((96, 64)), samples["cat"].image.resize((96, 64))]
    there = invert(pipe, pictures, PROMPTS, guidance_scale=scale, **EXACT)
    assert there.latents.shape == (2, 16, 8, 12)
    there.save(tmp_path / "two")
    there = Inversion.load(tmp_path / "two")
    back = reconstruct(pipe, there, output_type="pt")
    assert distance(back.latents, there.init_latents) < 1e-7  # rotations are float32 in some networks
    one = reconstruct(pipe, there[1], output_type="pt")
    assert distance(one.latents[0], there.init_latents[1]) < 1e-7
    assert metrics.psnr(own_call(pipe, there, scale), back.images).min() > 50


def test_sizes_are_whole_patches(samples):
    pipe = stable_diffusion_3()
    found = invert(pipe, samples["peach"].image.resize((78, 70)), num_inference_steps=1, method="ddim")
    assert found.latents.shape == (1, 16, 8, 8)  # cut down to 64 x 64
    with pytest.raises(ValueError, match=r"takes latents in patches of 2 x 2, got \(1, 16, 7, 8\)"):
        invert(pipe, torch.zeros(1, 16, 7, 8))
    with pytest.raises(ValueError, match="positions for latents of at most 32 a side"):
        invert(pipe, torch.zeros(1, 16, 8, 34))


@pytest.mark.parametrize("name", list(FLOW)[:2])
def test_embeddings_in_place_of_texts(name):
    pipe, x = FLOW[name](), torch.randn(2, 16, 4, 4, generator=torch.Generator().manual_seed(1))
    given = {"method": "ddim", "num_inference_steps": 2}
    wanted = invert(pipe, x, PROMPTS, prompt_2="both", **given)
    with torch.no_grad():
        if "FLUX" in name:
            found = [pipe.encode_prompt(p, "both")[:2] for p in PROMPTS]
        else:
            found = [pipe.encode_prompt(p, "both", p, do_classifier_free_guidance=False)[::2] for p in PROMPTS]
    embeds, pooled = (torch.cat(rows) for rows in zip(*found, strict=True))
    told = {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}
    assert torch.equal(invert(pipe, x, None, **told, **given).latents, wanted.latents)
    with pytest.raises(ValueError, match="prompt_embeds needs pooled_prompt_embeds beside it"):
        invert(pipe, x, None, prompt_embeds=embeds, **given)
    with pytest.raises(TypeError, match="unknown argument 'class_labels'"):
        invert(pipe, x, class_labels=1)


def test_sigmas_of_the_callers():
    pipe, x = flux(), torch.randn(1, 16, 4, 4, generator=torch.Generator().manual_seed(1))
    found = invert(pipe, x, method="ddim", sigmas=[1.0, 0.6, 0.2])
    own = FlowMatchEulerDiscreteScheduler.from_config(pipe.scheduler.config)
    own.set_timesteps(sigmas=[1.0, 0.6, 0.2], mu=mu_of(pipe, x, 1.15))
    assert torch.equal(found.schedule.sigma.float(), own.sigmas.flip(0))
    with pytest.raises(ValueError, match="is of rectified flow; pass sigmas in place of timesteps"):
        invert(pipe, x, timesteps=[1, 500])
    with pytest.raises(ValueError, match="network predicts 'flow', the schedule is for 'epsilon'"):
        invert(
            pipe, x, schedule=dataclasses.replace(found.schedule, prediction_type="epsilon", alpha=[0.9, 0.5, 0.3, 0.1])
        )


def test_another_solver_is_said_once(monkeypatch):
    monkeypatch.setattr(grids, "_told", set())
    pipe, x = flux(scheduler=FlowMatchHeunDiscreteScheduler(shift=3.0)), torch.zeros(1, 16, 4, 4)
    with pytest.warns(UserWarning, match="samples by FlowMatchHeunDiscreteScheduler; inversion .* Euler's steps"):
        found = invert(pipe, x, method="ddim", num_inference_steps=4)
    assert found.schedule.num_steps == 4


def test_its_remedy_regenerates_the_image(samples):
    pipe = flux(scheduler=FlowMatchHeunDiscreteScheduler(shift=3.0))
    found = invert(pipe, samples["peach"].image, PROMPTS[0], **EXACT)
    pictures = reconstruct(pipe, found, output_type="pt").images
    pipe.scheduler = FlowMatchEulerDiscreteScheduler()
    latents = pipe._pack_latents(found.latents.float(), *found.latents.shape)
    given = {"height": 64, "width": 64, "num_inference_steps": 4, "guidance_scale": 1.0, "output_type": "pt"}
    sigmas = found.schedule.sigma.flip(0)[:-1].tolist()
    assert metrics.psnr(pipe(PROMPTS[0], latents=latents, sigmas=sigmas, **given).images, pictures).min() > 50


@pytest.mark.parametrize("make", [flux, stable_diffusion_3, qwen_image])
def test_numbers_of_steps_are_checked_before_their_sigmas_are_made(make):
    pipe, x = make(), torch.zeros(1, 16, 4, 4)
    for steps, error in ((0, ValueError), (2000, ValueError), (2.5, TypeError), (True, TypeError)):
        with pytest.raises(error, match=f"from 1 to 1000, got {steps}"):
            invert(pipe, x, num_inference_steps=steps)
    assert invert(pipe, x, method="ddim", sigmas=[1.0, 0.5], num_inference_steps=0).schedule.num_steps == 2


def test_what_is_no_part_of_the_family():
    pipe = stable_diffusion_3()
    pipe.scheduler = FAMILIES["DiT"].pipelines[next(iter(FAMILIES["DiT"].pipelines))]().scheduler
    with pytest.raises(ValueError, match="scheduler DDIMScheduler is none of rectified flow; use FlowMatch"):
        invert(pipe, torch.zeros(1, 16, 4, 4))
    pipe = flux()
    pipe.transformer = stable_diffusion_3().transformer
    with pytest.raises(ValueError, match="transformer is a SD3Transformer2DModel; load one of class FluxTransformer"):
        invert(pipe, torch.zeros(1, 16, 4, 4))
    with pytest.raises(ValueError, match=r"int8.* is unavailable: its ranges are measured along a grid of betas"):
        invert(stable_diffusion_3(), torch.zeros(1, 16, 4, 4), runtime="openvino", dtype="int8", num_inference_steps=1)
    unet = stable_diffusion(FlowMatchEulerDiscreteScheduler())  # as demo.load_pipeline("flow")
    with pytest.raises(ValueError, match=r"int8.* is unavailable: its ranges are measured along a grid of betas"):
        invert(unet, torch.zeros(1, 4, 8, 8), runtime="openvino", dtype="int8", num_inference_steps=1)


@pytest.fixture
def own_backend():
    """diffusers takes the last backend that was set on any model for that of all."""
    with attention_backend("native"):
        yield


@pytest.mark.usefixtures("own_backend")
def test_attention_backends_are_kept():
    """Where processors have one, as FLUX's; the stand-in of the network runs them too."""
    pipe, x = flux(), torch.randn(1, 16, 4, 4, generator=torch.Generator().manual_seed(1))
    given = {"method": "ddim", "num_inference_steps": 2}
    before = invert(pipe, x, "a cat", **given)
    pipe.transformer.set_attention_backend("_native_math")
    after = invert(pipe, x, "a cat", **given)
    assert distance(after.latents, before.latents) < 1e-5
    network = adapters.resolve(pipe)(pipe).denoiser._private().network
    assert {each._attention_backend.value for each in network.attn_processors.values()} == {"_native_math"}


@pytest.mark.parametrize("name", ["euler", "rf_solver", "fireflow", "rf_inversion", "anderson", "obelm"])
def test_steps_are_captured(name, monkeypatch):
    """Times between nodes are looked up by the graph too."""
    recorder = Recorder()
    monkeypatch.setattr(run, "cuda_graphs", lambda device: recorder)
    monkeypatch.setattr(Denoiser, "uncapturable", None)
    release()
    pipe, x = stable_diffusion_3(), torch.randn(2, 16, 4, 6, generator=torch.Generator().manual_seed(1))
    given = {"method": name, "num_inference_steps": 6, "runtime": "eager"}
    for _ in range(2):
        plain = invert(pipe, x, PROMPTS, cuda_graph=False, **given)
        found = invert(pipe, x, PROMPTS, **given)
        assert found.stats.cuda_graph
        assert torch.equal(found.latents, plain.latents)
        back = reconstruct(pipe, found, output_type="latent").latents
        assert torch.equal(back, reconstruct(pipe, found, cuda_graph=False, output_type="latent").latents)
    assert recorder.made
    release()
