"""Pipelines of rectified flow: their conditions are diffusers' own, their steps a loop on diffusers' scheduler."""

import dataclasses
import inspect

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler
from families import FAMILIES
from recorded import Recorder
from tiny_transformers import flux, qwen_image, sana, stable_diffusion_3, z_image
from toy import distance

from invfast import Inversion, adapters, grids, invert, metrics, reconstruct, release, run
from invfast.denoiser import Denoiser
from invfast.methods import FixedPoint

PROMPTS = ["a peach", "a cat" + " sat on a dog" * 10]
"""Of different lengths, one beyond 32 tokens."""
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


def mu_of(pipe, x, most):
    config, tokens = pipe.scheduler.config, x.shape[2] * x.shape[3] // 4
    low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    m = (config.get("max_shift", most) - config.get("base_shift", 0.5)) / (high - low)
    return tokens * m + config.get("base_shift", 0.5) - m * low


def asking_sd3(pipe, x, scale):
    """(x, t) -> velocity, as the pipeline's own call has it; and its scheduler, set."""
    found = [pipe.encode_prompt(p, p, p, do_classifier_free_guidance=scale > 1) for p in PROMPTS]
    cond, uncond, pooled, unpooled = (None if rows[0] is None else torch.cat(rows) for rows in zip(*found, strict=True))
    embeds, texts = (torch.cat([uncond, cond]), torch.cat([unpooled, pooled])) if scale > 1 else (cond, pooled)

    def ask(x, t):
        rows = torch.cat([x] * 2) if scale > 1 else x
        told = {"encoder_hidden_states": embeds.to(x.dtype), "pooled_projections": texts.to(x.dtype)}
        out = pipe.transformer(hidden_states=rows, timestep=t.expand(len(rows)), **told, return_dict=False)[0]
        if scale == 1:
            return out
        without, given = out.chunk(2)
        return without + scale * (given - without)

    scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipe.scheduler.config)
    scheduler.set_timesteps(5, **({"mu": mu_of(pipe, x, 1.16)} if scheduler.config.use_dynamic_shifting else {}))
    return ask, scheduler


def asking_flux(pipe, x, scale):
    found = [pipe.encode_prompt(p, p, max_sequence_length=512) for p in PROMPTS]
    embeds, pooled = (torch.cat(rows) for rows in list(zip(*found, strict=True))[:2])
    b, c, h, w = x.shape
    ids = pipe._prepare_latent_image_ids(b, h // 2, w // 2, "cpu", x.dtype)
    guidance = torch.full([b], scale) if pipe.transformer.config.guidance_embeds else None

    def ask(x, t):
        out = pipe.transformer(
            hidden_states=pipe._pack_latents(x, b, c, h, w),
            timestep=t.expand(b).to(x.dtype) / 1000,
            guidance=guidance,
            pooled_projections=pooled.to(x.dtype),
            encoder_hidden_states=embeds.to(x.dtype),
            txt_ids=found[0][2].to(x.dtype),
            img_ids=ids,
            return_dict=False,
        )[0]
        return pipe._unpack_latents(out, 8 * h, 8 * w, 8)

    scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipe.scheduler.config)
    sigmas = torch.linspace(1, 1 / 5, 5, dtype=torch.float64).numpy()
    scheduler.set_timesteps(sigmas=sigmas, mu=mu_of(pipe, x, 1.15))
    return ask, scheduler


def asking_qwen(pipe, x, scale):
    b, c, h, w = x.shape
    told = pipe.encode_prompt(PROMPTS), pipe.encode_prompt(["", "none"])

    def ask(x, t):
        branches = [
            pipe.transformer(
                hidden_states=pipe._pack_latents(x, b, c, h, w),
                timestep=t.expand(b).to(x.dtype) / 1000,
                encoder_hidden_states=embeds.to(x.dtype),
                encoder_hidden_states_mask=mask,
                img_shapes=[[(1, h // 2, w // 2)]] * b,
                return_dict=False,
            )[0]
            for embeds, mask in (told if scale > 1 else told[:1])
        ]
        out = branches[0]
        if scale > 1:
            both = branches[1] + scale * (out - branches[1])
            out = both * (out.norm(dim=-1, keepdim=True) / both.norm(dim=-1, keepdim=True))
        return pipe._unpack_latents(out, 8 * h, 8 * w, 8)[:, :, 0]

    scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipe.scheduler.config)
    sigmas = torch.linspace(1, 1 / 5, 5, dtype=torch.float64).numpy()
    scheduler.set_timesteps(sigmas=sigmas, mu=mu_of(pipe, x, 1.15))
    return ask, scheduler


def asking_z_image(pipe, x, scale):
    b = len(x)
    positive, negative = pipe.encode_prompt(list(PROMPTS), negative_prompt=["", "none"])

    def ask(x, t):
        told = [each.to(x.dtype) for each in (positive + negative if scale > 1 else positive)]
        rows = list(x.repeat(len(told) // b, 1, 1, 1).unsqueeze(2).unbind())
        out = torch.stack(pipe.transformer(rows, ((1000 - t) / 1000).expand(len(rows)), told, return_dict=False)[0])
        out = out.squeeze(2)
        return -(out[:b] + scale * (out[:b] - out[b:]) if scale > 1 else out)

    scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipe.scheduler.config)
    scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / 5, 5).tolist(), mu=mu_of(pipe, x, 1.15))
    return ask, scheduler


def asking_sana(pipe, x, scale):
    """As the pipeline's own call encodes: an instruction before the prompts, 300 tokens in each branch."""
    instruction = inspect.signature(pipe.__call__).parameters["complex_human_instruction"].default
    found = pipe.encode_prompt(PROMPTS, scale > 1, negative_prompt=["", "none"], complex_human_instruction=instruction)
    embeds, mask, unembeds, unmask = found
    if scale > 1:
        embeds, mask = torch.cat([unembeds, embeds]), torch.cat([unmask, mask])

    def ask(x, t):
        rows = x.repeat(len(embeds) // len(x), 1, 1, 1)
        told = {"encoder_hidden_states": embeds.to(x.dtype), "encoder_attention_mask": mask}
        out = pipe.transformer(rows, timestep=t.expand(len(rows)), **told, return_dict=False)[0]
        if scale == 1:
            return out
        without, given = out.chunk(2)
        return without + scale * (given - without)

    scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipe.scheduler.config)
    scheduler.set_timesteps(5)
    return ask, scheduler


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
        assert distance(found.latents, plain.latents) < 1e-6  # buffers lie elsewhere: the last bits may differ
        back = reconstruct(pipe, found, output_type="latent").latents
        wanted = reconstruct(pipe, found, cuda_graph=False, output_type="latent").latents
        assert distance(back, wanted) < 1e-6
    assert recorder.made
    release()
