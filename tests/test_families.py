"""Every family there and back: batches, guidance, odd sizes, runtimes, what is computed beforehand, graphs."""

from pathlib import Path

import pytest
import torch
from diffusers import DDIMInverseScheduler
from exact import as_exact_as_eager
from families import FAMILIES, deepfloyd, seeded, table
from recorded import Recorder
from test_caller import fingerprint
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


def told(family, count):
    return {name: value[:count] for name, value in family.told.items()}


def drawn(family, count):
    """Latents; of pixels they are images."""
    x = torch.randn(count, *family.shape, generator=torch.Generator().manual_seed(1))
    return x if family.shape[0] == 4 else x.clamp(-1, 1)


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
    reconstruct(pipe, found, output_type="latent")
    assert fingerprint(pipe) == before
    assert set(adapters.resolve(pipe).pipelines) >= {each.__name__ for each in family.pipelines}


def test_a_batch_is_its_images(made):
    family, pipe = made
    for scale in family.scales:
        settings = {**STEPS, "guidance_scale": scale, "dtype": "float64"}
        x = drawn(family, 3)
        every = invert(pipe, x, texts(family, 3), **settings, **told(family, 3))
        back = reconstruct(pipe, every, output_type="latent").latents
        for j in range(3):
            own = {name: value[j] for name, value in family.told.items()}
            text = texts(family, 3)[j] if family.texts else ""
            one = invert(pipe, x[j : j + 1], text, **settings, **own)
            assert distance(one.latents, every.latents[j : j + 1]) < 1e-6  # float32 sinusoids and texts
            assert distance(reconstruct(pipe, every[j], output_type="latent").latents, back[j : j + 1]) < 1e-6


def test_what_is_computed_beforehand(made):
    family, pipe = made
    x, given = drawn(family, 3).double(), told(family, 3)
    for scale in family.scales:
        settings = {**STEPS, "guidance_scale": scale, "dtype": "float64", **given}
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


OWN = {
    "Latent diffusion without text": lambda pipe, x, t, rows: pipe.unet(x, t).sample,
    "DeepFloyd IF, first stage": by_text,
    "DiT": by_class,
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
        settings = {**STEPS, "num_inference_steps": 5, "guidance_scale": scale, "runtime": "eager", **told(family, 3)}
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
