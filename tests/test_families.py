"""Every family there and back: batches, guidance, odd sizes, runtimes, what is computed beforehand, graphs."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMInverseScheduler
from exact import as_exact_as_eager
from families import FAMILIES, deepfloyd, dit, latent_diffusion, table
from recorded import Recorder
from test_caller import fingerprint
from tiny import seeded, stable_diffusion_xl
from toy import distance

from invfast import Schedule, adapters, invert, reconstruct, release, run
from invfast.adapters import Prompts
from invfast.denoiser import Denoiser
from invfast.runtimes import LARGE, resolve

STEPS = {"method": "ddim", "num_inference_steps": 3}
pytestmark = pytest.mark.filterwarnings(
    "ignore:the pipeline samples by", "ignore:inverting at guidance_scale", "ignore:.* has clip_sample"
)


def texts(family, count):
    return ["a peach", "", "a cat"][:count] if family.texts else ""


def told(family, count, scale=1.0):
    return family.told(range(count), scale)


def drawn(family, count):
    """Latents; of pixels they are images."""
    x = torch.randn(count, *family.shape, generator=torch.Generator().manual_seed(1))
    return x.clamp(-1, 1) if family.shape[0] == 3 else x


@pytest.fixture(scope="module", params=FAMILIES)
def made(request):
    family = FAMILIES[request.param]
    return family, next(iter(family.pipelines.values()))()


@pytest.mark.parametrize(
    ("name", "cls"), [(name, cls) for name, each in FAMILIES.items() for cls in each.pipelines], ids=str
)
def test_its_classes_come_in_and_stay_as_they_are(name, cls):
    family = FAMILIES[name]
    pipe = family.pipelines[cls]()
    assert type(pipe) is cls
    told_nothing = Prompts([""], more=told(family, 1))
    adapters.resolve(pipe)(pipe).condition(drawn(family, 1), told_nothing, 1.0)  # transformers notes something
    before = fingerprint(pipe)
    found = invert(pipe, drawn(family, 3), texts(family, 3), **STEPS, **told(family, 3))
    reconstruct(pipe, found, output_type="latent", **told(family, 3))
    assert fingerprint(pipe) == before
    assert set(adapters.resolve(pipe).pipelines) >= {each.__name__ for each in family.pipelines}


def test_a_batch_is_its_images(made):
    family, pipe = made
    for scale in family.scales:
        settings = {**STEPS, "guidance_scale": scale, "dtype": "float64"}
        x, given = drawn(family, 3), told(family, 3, scale)
        every = invert(pipe, x, texts(family, 3), **settings, **given)
        back = reconstruct(pipe, every, output_type="latent", **given).latents
        for j in range(3):
            own = family.told([j], scale)
            text = texts(family, 3)[j] if family.texts else ""
            one = invert(pipe, x[j : j + 1], text, **settings, **own)
            assert distance(one.latents, every.latents[j : j + 1]) < 1e-6  # float32 sinusoids and texts
            assert distance(reconstruct(pipe, every[j], output_type="latent", **own).latents, back[j : j + 1]) < 1e-6


def test_what_is_computed_beforehand(made):
    family, pipe = made
    x = drawn(family, 3).double()
    for scale in family.scales if family.precomputes else family.scales[:1]:
        settings = {**STEPS, "guidance_scale": scale, "dtype": "float64", **told(family, 3, scale)}
        cut = invert(pipe, x, texts(family, 3), **settings)
        whole = invert(pipe, x, texts(family, 3), precompute=(), **settings)
        assert cut.stats.precomputed == family.precomputes
        assert distance(cut.latents, whole.latents) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["compile", "openvino", "onnxruntime"])
def test_runtimes(runtime, made):
    family, pipe = made
    if runtime not in family.exports:
        pytest.skip("not among what the table says")
    given = {**STEPS, "num_inference_steps": 2, **told(family, 3)}
    x, exact = drawn(family, 3), invert(pipe, drawn(family, 3), texts(family, 3), dtype="float64", **given)
    eager, found = (
        invert(pipe, x, texts(family, 3), dtype="float32", runtime=name, **given) for name in ("eager", runtime)
    )
    assert found.stats.runtime == runtime
    as_exact_as_eager(found.latents, eager.latents, exact.latents)


def test_tensors_are_images_where_latents_look_like_them(samples):
    """The published LDM has latents of three channels."""
    pipe, picture = seeded(lambda: latent_diffusion(3)), samples["peach"].image
    pixels = torch.from_numpy(np.asarray(picture)).permute(2, 0, 1).unsqueeze(0) / 255
    found = [invert(pipe, each, **STEPS).init_latents for each in (picture, pixels)]
    assert found[0].shape == (1, 3, 32, 32)
    assert distance(found[1], found[0]) < 1e-5


@pytest.mark.parametrize("name", ["null_text", "prompt_tuning", "negative_prompt"])
def test_methods_of_text_are_refused_where_there_is_none(name):
    with pytest.raises(ValueError, match="text embeddings, which this pipeline's network has none of; take Direct"):
        invert(seeded(dit), torch.zeros(1, 4, 8, 8), class_labels=1, method=name, num_inference_steps=2)
    with pytest.raises(ValueError, match="DiTPipeline takes no text: pass no prompt"):
        invert(seeded(dit), torch.zeros(1, 4, 8, 8), "a cat", class_labels=1)


def test_negative_prompt_is_for_networks_told_by_text_alone():
    with pytest.raises(ValueError, match=r"by their text embeddings.* differ in text_embeds, time_ids too"):
        invert(stable_diffusion_xl(), torch.zeros(1, 4, 8, 8), method="negative_prompt", num_inference_steps=2)


def test_another_guidance_on_the_way_back_is_nothing_to_warn_of():
    pipe, x = stable_diffusion_xl(), torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    there = invert(pipe, x, "a cat", **STEPS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reconstruct(pipe, there, guidance_scale=3.0, output_type="latent")


@pytest.mark.slow
def test_a_compiled_unet_of_the_callers_stays_whole():
    pipe, x = stable_diffusion_xl(), torch.zeros(1, 4, 8, 8) + 0.5
    wanted = invert(pipe, x, "a cat", **STEPS).latents
    pipe.unet = torch.compile(pipe.unet, backend="eager")
    parts = set(pipe.unet._orig_mod._modules)
    assert distance(invert(pipe, x, "a cat", **STEPS).latents, wanted) < 1e-5
    assert set(pipe.unet._orig_mod._modules) == parts


def test_repeated_tokens_are_no_other_way_to_say_them_for_if():
    embeds = {"prompt_embeds": torch.randn(1, 4, 32), "negative_prompt_embeds": torch.randn(1, 8, 32)}
    with pytest.raises(ValueError, match="must have as many tokens for this network, got 4 and 8"):
        invert(seeded(deepfloyd), torch.zeros(1, 3, 16, 16), None, guidance_scale=3.0, **embeds)


def test_a_runtime_that_crashes_is_refused():
    """OpenVINO took the process along; `auto` is for eager there whatever the size."""
    pipe = seeded(deepfloyd)
    with pytest.raises(ValueError, match=r"'openvino' cannot run this network: OpenVINO .* take 'eager'"):
        invert(pipe, torch.zeros(1, 3, 16, 16), runtime="openvino", **STEPS)
    refused = adapters.resolve(pipe)(pipe).denoiser.form.refused
    given = {"free": False, "parameters": 10 * LARGE, "opaque": None, "refused": refused}
    assert resolve("auto", torch.device("cpu"), torch.float32, **given).runtime.name == "eager"


def by_text(pipe, x, t, rows):
    """IF's network and its embeddings; the last rows without a text."""
    said = ["a peach", "", "a cat"] + [""] * (rows - 3)
    embeds = torch.cat([pipe.encode_prompt(text, False)[0] for text in said])
    return pipe.unet(x, t, encoder_hidden_states=embeds.to(x.dtype)).sample[:, :3]


def by_class(pipe, x, t, rows):
    labels = torch.tensor([1, 2, 3] + [1000] * (rows - 3))
    return pipe.transformer(x, timestep=t.expand(rows), class_labels=labels).sample[:, :4]


def by_long_text(pipe, x, t, rows):
    """PixArt's network and its embeddings; the last rows without a text."""
    found = [pipe.encode_prompt(text, False)[:2] for text in ["a peach", "", "a cat"] + [""] * (rows - 3)]
    embeds, mask = (torch.cat(each) for each in zip(*found, strict=True))
    told = {"encoder_hidden_states": embeds.to(x.dtype), "encoder_attention_mask": mask, "added_cond_kwargs": {}}
    return pipe.transformer(x, timestep=t.expand(rows), **told).sample[:, :4]


OWN = {
    "Latent diffusion without text": lambda pipe, x, t, rows: pipe.unet(x, t).sample,
    "DeepFloyd IF, first stage": by_text,
    "DiT": by_class,
    "PixArt-alpha, -sigma": by_long_text,
}
"""What pipelines without latents among their arguments ask of their networks."""


@pytest.mark.parametrize("name", OWN)
def test_is_a_loop_on_diffusers_own_scheduler(name):
    family = FAMILIES[name]
    pipe = next(iter(family.pipelines.values()))()
    grid = Schedule.from_scheduler(pipe.scheduler, 4, compat="diffusers")
    settings = {"method": "ddim", "schedule": grid, "dtype": "float64", "save_trajectory": True, **told(family, 3)}
    found = {
        scale: invert(pipe, drawn(family, 3).double(), texts(family, 3), guidance_scale=scale, **settings).trajectory
        for scale in family.scales
    }
    adapters.resolve(pipe)(pipe).read["network"].module.double()
    for scale, every in found.items():
        scheduler = DDIMInverseScheduler.from_config(pipe.scheduler.config)
        scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
        scheduler.initial_alpha_cumprod = torch.as_tensor(scheduler.initial_alpha_cumprod).double()
        scheduler.set_timesteps(4)
        x = every[0]
        for t, wanted in zip(scheduler.timesteps, every[1:], strict=True):
            rows = 3 if scale == 1 else 6
            with torch.no_grad():
                out = OWN[name](pipe, torch.cat([x] * (rows // 3)), t, rows)
            if scale > 1:
                given, without = out.chunk(2)
                out = without + scale * (given - without)
            x = scheduler.step(out, t, x).prev_sample
            assert distance(wanted, x) < 1e-10


def test_graphs(made, monkeypatch):
    family, pipe = made
    recorder = Recorder()
    monkeypatch.setattr(run, "cuda_graphs", lambda device: recorder)
    monkeypatch.setattr(Denoiser, "uncapturable", None)
    release()
    for scale in family.scales:
        settings = {**STEPS, "num_inference_steps": 5, "guidance_scale": scale, "runtime": "eager"}
        settings |= told(family, 3, scale)
        x = drawn(family, 3)
        plain = invert(pipe, x, texts(family, 3), cuda_graph=False, **settings)
        captured = invert(pipe, x, texts(family, 3), **settings)
        recorded = len(recorder.made)
        again = invert(pipe, x, texts(family, 3), **settings)
        assert captured.stats.cuda_graph
        assert torch.equal(plain.latents, captured.latents)
        assert torch.equal(plain.latents, again.latents)
        assert len(recorder.made) == recorded > 0
    release()


def test_the_table_of_the_documentation_is_this_one():
    page = (Path(__file__).parents[1] / "docs" / "families.md").read_text()
    assert table() in page
    named = {cls.__name__ for family in FAMILIES.values() for cls in family.pipelines}
    assert named == {name for adapter in adapters.ADAPTERS for name in adapter.pipelines}
