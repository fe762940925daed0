"""Which pipelines come in: each of diffusers' works, or is refused before anything is run, with what to do."""

import copy
import warnings

import diffusers
import pytest
import torch
from diffusers import (
    PyramidAttentionBroadcastConfig,
    StableDiffusionAdapterPipeline,
    StableDiffusionPipeline,
    T2IAdapter,
)
from families import FAMILIES, as_class
from tiny import BARE, stable_diffusion, stable_diffusion_xl

from invfast import adapters, grids, invert
from invfast.adapters import door

STEPS = {"method": "ddim", "num_inference_steps": 2}
COME_IN = [(cls, make, family.told) for family in FAMILIES.values() for cls, make in family.pipelines.items()]
STAY_OUT = [
    "AmusedPipeline",
    "AnimateDiffPipeline",
    "AnimateDiffSDXLPipeline",
    "AudioLDM2Pipeline",
    "AuraFlowPipeline",
    "CogVideoXPipeline",
    "ConsistencyModelPipeline",
    "ChromaPipeline",
    "CogView4Pipeline",
    "Flux2Pipeline",
    "FluxControlPipeline",
    "FluxControlNetPipeline",
    "FluxFillPipeline",
    "FluxKontextPipeline",
    "FluxPriorReduxPipeline",
    "HiDreamImagePipeline",
    "HunyuanDiTPipeline",
    "KandinskyPipeline",
    "Kandinsky3Pipeline",
    "KolorsPipeline",
    "LDMTextToImagePipeline",
    "LEditsPPPipelineStableDiffusion",
    "LattePipeline",
    "Lumina2Pipeline",
    "MarigoldDepthPipeline",
    "PixArtSigmaPAGPipeline",
    "QwenImage21Pipeline",
    "QwenImageControlNetPipeline",
    "QwenImageEditPipeline",
    "QwenImageEditPlusPipeline",
    "QwenImageLayeredPipeline",
    "SanaControlNetPipeline",
    "SanaPAGPipeline",
    "SanaSprintPipeline",
    "SanaVideoPipeline",
    "StableDiffusion3ControlNetPipeline",
    "StableCascadeDecoderPipeline",
    "StableDiffusionAdapterPipeline",
    "StableDiffusionControlNetXSPipeline",
    "StableDiffusionControlNetPAGPipeline",
    "StableDiffusionDepth2ImgPipeline",
    "StableDiffusionGLIGENPipeline",
    "StableDiffusionInstructPix2PixPipeline",
    "StableDiffusionLatentUpscalePipeline",
    "StableDiffusionPAGPipeline",
    "StableDiffusionSAGPipeline",
    "StableDiffusionUpscalePipeline",
    "StableDiffusionXLAdapterPipeline",
    "StableDiffusionXLControlNetUnionPipeline",
    "StableUnCLIPPipeline",
    "StableVideoDiffusionPipeline",
    "TextToVideoSDPipeline",
    "UnCLIPPipeline",
    "UniDiffuserPipeline",
    "WanPipeline",
    "ZImageControlNetPipeline",
    "ZImageOmniPipeline",
]


@pytest.mark.filterwarnings("ignore:the pipeline samples by", "ignore:DDIMScheduler has clip_sample")
@pytest.mark.parametrize(("cls", "make", "told"), COME_IN, ids=lambda each: getattr(each, "__name__", ""))
def test_comes_in(cls, make, told, peach):
    pipe = make()
    assert type(pipe) is cls
    assert invert(pipe, peach.resize((32, 32)), **STEPS, **told([0], 1.0)).latents.isfinite().all()

    class Own(cls):
        """A subclass has the same parts."""

    assert adapters.resolve(object.__new__(Own)) is adapters.resolve(pipe)


@pytest.mark.parametrize("name", STAY_OUT)
def test_stays_out(name, peach):
    cls = getattr(diffusers, name)
    with pytest.raises(TypeError, match=f"pipeline {name} is not supported; expected one of: Stable Diffusion 1.x"):
        invert(object.__new__(cls), peach)


@pytest.mark.parametrize("begin", door.MISSING)
def test_what_is_missing_is_said(begin):
    found = [name for name in STAY_OUT if name.startswith(begin)]
    assert found
    for name in found:
        said = door.foreign(object.__new__(getattr(diffusers, name)), {"each": "a family"})
        longest = max((each for each in door.MISSING if name.startswith(each)), key=len)
        assert said.endswith(f"a family. Missing for {name}: {door.MISSING[longest]}")


def test_at_least_forty_were_asked():
    assert len(COME_IN) + len(set(STAY_OUT)) >= 40


def test_what_else_can_be_done_is_said(peach):
    pipe = stable_diffusion()
    adapter = T2IAdapter(channels=(16, 32, 32), num_res_blocks=1, adapter_type="full_adapter")
    parts = {name: part for name, part in pipe.components.items() if name != "image_encoder"}
    given = StableDiffusionAdapterPipeline(**{**parts, **BARE}, adapter=adapter)
    said = r"without a T2I-Adapter \('adapter'\): pass StableDiffusionPipeline.from_pipe\(pipe\)"
    with pytest.raises(TypeError, match=said):
        invert(given, peach)
    assert invert(StableDiffusionPipeline.from_pipe(given), peach, **STEPS).latents.isfinite().all()


def with_config(**config):
    pipe = stable_diffusion()
    pipe.unet.register_to_config(**config)
    return pipe


def parallel():
    pipe = stable_diffusion()
    wrapped = torch.nn.DataParallel(pipe.unet)
    object.__setattr__(pipe, "unet", wrapped)
    return pipe


def parallel_xl():
    pipe = stable_diffusion_xl()
    object.__setattr__(pipe, "unet", torch.nn.DataParallel(pipe.unet))
    return pipe


def no_model_of_diffusers():
    pipe = stable_diffusion()
    object.__setattr__(pipe, "unet", torch.nn.Conv2d(4, 4, 1))
    return pipe


def remembering():
    pipe = stable_diffusion()
    config = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(100, 800),
        spatial_attention_block_identifiers=("attentions",),
        current_timestep_callback=lambda: 500,
    )
    diffusers.apply_pyramid_attention_broadcast(pipe.unet, config)
    return pipe


def deep_cache():
    pipe = stable_diffusion()
    own = pipe.unet.forward

    def forward(*given, **named):
        return own(*given, **named)

    forward.__module__ = "DeepCache.extension.deepcache"
    pipe.unet.forward = forward
    return pipe


def without_vae():
    pipe = stable_diffusion()
    pipe.vae = None
    return pipe


def foreign_texts():
    class Weighted(StableDiffusionPipeline):
        def encode_prompt(self, prompt, strength):
            raise AssertionError

    return as_class(Weighted)


REFUSED = {
    "IP-Adapter": (lambda: with_config(encoder_hid_dim_type="ip_image_proj"), "call pipe.unload_ip_adapter()"),
    "image embeddings": (lambda: with_config(encoder_hid_dim_type="image_proj"), "image embeddings \\(image_proj\\)"),
    "added embeddings": (lambda: with_config(addition_embed_type="text"), "added embeddings of kind 'text'"),
    "SDXL's network": (lambda: with_config(addition_embed_type="text_time"), "of kind 'text_time', which this family"),
    "classes": (lambda: with_config(class_embed_type="timestep"), "needs class labels"),
    "GLIGEN": (lambda: with_config(attention_type="gated"), "has gated attention, as GLIGEN's, which needs boxes"),
    "inpainting": (lambda: with_config(in_channels=9), "takes 9 channels and its latents have 4"),
    "DataParallel": (parallel, "wrapped in DataParallel.*put unet.module in its place"),
    "DataParallel of SDXL": (parallel_xl, "wrapped in DataParallel.*put unet.module in its place"),
    "no model": (no_model_of_diffusers, "a Conv2d, no model of diffusers"),
    "attention broadcast": (remembering, "reuses what earlier steps computed \\(pyramid_attention_broadcast\\)"),
    "DeepCache": (deep_cache, "reuses what earlier steps computed \\(DeepCache"),
    "no VAE": (without_vae, "it has no vae, which images go through"),
    "texts": (foreign_texts, "its encode_prompt is that of test_door, whose arguments are not known"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_be_ignored_or_break_is_refused(case, peach, monkeypatch):
    make, said = REFUSED[case]
    pipe = make()
    monkeypatch.setattr(type(pipe.unet), "forward", lambda *given, **named: pytest.fail("the network ran"))
    with pytest.raises(ValueError, match=f"^{type(pipe).__name__} cannot be inverted: .*{said}"):
        invert(pipe, peach)


def test_what_the_pipeline_samples_otherwise_is_said_once(peach, monkeypatch):
    pipe = stable_diffusion()
    betas = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    pipe.scheduler = diffusers.EulerDiscreteScheduler(**betas)
    monkeypatch.setattr(grids, "_told", set())
    with pytest.warns(UserWarning, match="samples by EulerDiscreteScheduler; .* DDIMScheduler.from_config") as said:
        invert(pipe, peach, **STEPS)
    assert said[0].filename == __file__
    clipping = copy.copy(pipe)
    clipping.scheduler = diffusers.DDIMScheduler(**betas, set_alpha_to_one=False, thresholding=True)
    with pytest.warns(UserWarning, match="DDIMScheduler has (clip_sample|thresholding)") as said:
        invert(clipping, peach, **STEPS)
    assert len(said) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        invert(pipe, peach, **STEPS)
        invert(clipping, peach, **STEPS)
