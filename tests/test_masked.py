"""Texts of any length under a mask, and guidance that is no row: Qwen-Image, Z-Image, Sana, PixArt."""

import warnings

import pytest
import torch
from diffusers import PixArtAlphaPipeline, PixArtSigmaPipeline, SanaSprintPipeline
from recorded import Recorder
from tiny_transformers import flux, pixart, qwen_image, sana, z_image
from toy import distance

from invfast import adapters, invert, metrics, reconstruct, release, run
from invfast.adapters import Prompts
from invfast.denoiser import MASK, Denoiser
from invfast.methods import Direct, FixedPoint

LONG, SHORT = "a cat" + " sat on a dog" * 10, "a peach"
STEPS = {"method": "ddim", "num_inference_steps": 3}
MAKERS = {"qwen": qwen_image, "z-image": z_image, "sana": sana, "pixart": pixart}
MASKS = {"qwen": "prompt_embeds_mask", "sana": "prompt_attention_mask", "pixart": "prompt_attention_mask"}
pytestmark = pytest.mark.filterwarnings("ignore:inverting at guidance_scale", "ignore:the pipeline samples by")


@pytest.fixture(params=MAKERS)
def name(request):
    return request.param


def latents(pipe, count=2):
    channels = adapters.resolve(pipe)(pipe).denoiser.form.channels
    return torch.randn(count, channels, 6, 4, generator=torch.Generator().manual_seed(1))


def test_a_row_says_nothing_of_its_batch(name):
    pipe = MAKERS[name]()
    found = invert(pipe, latents(pipe), [LONG, SHORT], guidance_scale=4.0, **STEPS)
    assert found.stats.samples == 2 * 2 * 3
    assert found.stats.evaluations == (3, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        every = reconstruct(pipe, found, output_type="latent").latents
        alone = reconstruct(pipe, found[1], output_type="latent").latents
    assert distance(alone, every[1:]) < 1e-4  # a batch of another size rounds otherwise


def test_texts_of_one_length_need_no_mask(name):
    pipe = MAKERS[name]()
    model, x = adapters.resolve(pipe)(pipe), latents(pipe)
    for said, masked in (([SHORT, SHORT], False), ([LONG, SHORT], True)):
        condition = model.condition(x, Prompts(said), 1.0)
        assert (MASK in model.denoiser.predictor(x, torch.tensor([0.0, 500.0]), condition).static) == masked


def test_embeddings_in_place_of_texts(name):
    pipe = MAKERS[name]()
    x = latents(pipe)
    wanted = invert(pipe, x, [LONG, SHORT], **STEPS).latents
    condition, _ = adapters.resolve(pipe)(pipe).condition(x, Prompts([LONG, SHORT]), 1.0)
    embeds, mask = condition["encoder_hidden_states"], condition[MASK]
    if name == "z-image":
        given = {"prompt_embeds": [row[:n] for row, n in zip(embeds, mask.sum(1).tolist(), strict=True)]}
    else:
        given = {"prompt_embeds": embeds, MASKS[name]: mask}
    assert torch.equal(invert(pipe, x, None, **given, **STEPS).latents, wanted)
    if name == "z-image":
        return
    with pytest.raises(ValueError, match=f"{MASKS[name]} goes with prompt_embeds; pass both"):
        invert(pipe, x, SHORT, **{MASKS[name]: mask}, **STEPS)
    with pytest.raises(ValueError, match=rf"{MASKS[name]} must be a tensor of shape \(1 or 2, {mask.shape[1]}\)"):
        invert(pipe, x, None, prompt_embeds=embeds, **{MASKS[name]: mask[:, 1:]}, **STEPS)
    with pytest.raises(ValueError, match="with a word in every row"):
        invert(pipe, x, None, prompt_embeds=embeds, **{MASKS[name]: 0 * mask}, **STEPS)


def test_methods_that_tune_or_share_texts_are_refused(name):
    pipe = MAKERS[name]()
    for method in ("null_text", "prompt_tuning", "negative_prompt"):
        with pytest.raises(ValueError, match="of any length under a mask; take Direct"):
            invert(pipe, latents(pipe), SHORT, method=method, num_inference_steps=2)
    there = invert(pipe, latents(pipe), [LONG, SHORT], method=Direct(4.0), num_inference_steps=3)
    assert there.stats.samples == 2 * 3
    back = reconstruct(pipe, there, output_type="latent")
    assert back.stats.samples == 2 * 2 * 3
    assert distance(back.latents, there.init_latents) < 1e-6
    with pytest.raises(ValueError, match="give guidance_scale=3 to the method instead"):
        invert(pipe, latents(pipe), SHORT, method=Direct(4.0), guidance_scale=3.0, num_inference_steps=3)


def test_many_times_at_once_are_each_in_its_turn(name):
    pipe = MAKERS[name]()
    model, x = adapters.resolve(pipe)(pipe, dtype="float64"), latents(pipe).double()
    condition = model.condition(x, Prompts([LONG, SHORT]), 4.0)
    predict = model.denoiser.predictor(x, torch.tensor([0.0, 300.0, 600.0]), condition)
    with torch.inference_mode():
        times, rows = torch.tensor([300.0, 600.0]), torch.stack([x, x + 1])
        together = predict.many(rows, times)
        assert predict.samples == 8
        for j in range(2):
            for all_times, own in zip(together, predict(rows[j], times[j]), strict=True):
                assert distance(all_times[j], own) < 1e-6
        (one, *_), (both, *_) = predict(x, times[0], [1]), predict(x, times[0])
        assert predict.evaluations == [5, 6]
        assert distance(one[1], both[1]) < 1e-6


def test_guidance_that_is_no_row_keeps_its_precision_and_stops_where_an_image_is_done():
    pipe = qwen_image()
    x, given = latents(pipe), {"guidance_scale": 3.3, "num_inference_steps": 3}
    exact = invert(pipe, x, [LONG, SHORT], dtype="float64", method="ddim", **given).latents
    half = invert(pipe, x, [LONG, SHORT], dtype="bfloat16", method="ddim", **given).latents
    assert distance(half, exact) < 0.05
    found = invert(pipe, x, [LONG, SHORT], method=FixedPoint(20, tolerance=1e-5), **given)
    assert found.stats.reached == (True, True)
    assert found.stats.samples == 2 * sum(found.stats.evaluations)


def test_a_scale_goes_into_graphs_of_another(monkeypatch):
    pipe = qwen_image()
    x, recorder = latents(pipe), Recorder()
    monkeypatch.setattr(run, "cuda_graphs", lambda device: recorder)
    monkeypatch.setattr(Denoiser, "uncapturable", None)
    release()
    for scale in (4.0, 6.0):
        settings = {**STEPS, "num_inference_steps": 5, "guidance_scale": scale, "runtime": "eager"}
        plain = invert(pipe, x, [LONG, SHORT], cuda_graph=False, **settings)
        captured = invert(pipe, x, [LONG, SHORT], **settings)
        assert captured.stats.cuda_graph
        assert torch.equal(plain.latents, captured.latents)
    assert len(recorder.made) == 1
    release()


def test_exports_that_fail_are_refused(name):
    said = r"'onnxruntime' cannot run this network: .* take 'eager' or '(compile|openvino)'"
    pipe = MAKERS[name]()
    with pytest.raises(ValueError, match=said):
        invert(pipe, latents(pipe), SHORT, runtime="onnxruntime", **STEPS)


def test_z_image_counts_guidance_as_its_pipeline_does():
    pipe = z_image()
    model = adapters.resolve(pipe)(pipe)
    assert [model.guidance(g) for g in (0.0, 1.0, 3.0)] == [1.0, 1.0, 4.0]
    with pytest.raises(ValueError, match=r"guided at guidance_scale=0.5, its weights being 1 \+ g and -g"):
        invert(pipe, latents(pipe), SHORT, guidance_scale=0.5, **STEPS)


def test_z_image_under_hooks_is_called_as_its_pipeline_does():
    pipe = z_image()
    wanted = invert(pipe, latents(pipe), [LONG, SHORT], guidance_scale=4.0, **STEPS).latents
    handle = pipe.transformer.register_forward_hook(lambda *given: seen.append(1))
    seen = []
    found = invert(pipe, latents(pipe), [LONG, SHORT], guidance_scale=4.0, **STEPS)
    handle.remove()
    assert len(seen) == 3
    assert distance(found.latents, wanted) < 1e-5


def test_another_guidance_on_the_way_back_is_no_other_condition():
    pipe = flux()
    found = invert(pipe, torch.randn(1, 16, 4, 4), SHORT, guidance_scale=3.5, **STEPS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reconstruct(pipe, found, guidance_scale=5.0, output_type="latent")


def test_what_is_no_part_of_the_families():
    pipe = qwen_image()
    pipe.transformer.register_to_config(zero_cond_t=True)
    with pytest.raises(ValueError, match="one of layers, of editing or of distilled guidance"):
        invert(pipe, latents(qwen_image()))
    with pytest.raises(TypeError, match="Missing for SanaSprintPipeline: "):
        invert(object.__new__(SanaSprintPipeline), torch.zeros(1, 4, 8, 8))


def test_pixart_alpha_is_told_the_size():
    pipe = pixart(PixArtAlphaPipeline, 128)
    condition, _ = adapters.resolve(pipe)(pipe).condition(torch.zeros(2, 4, 8, 6), Prompts([SHORT] * 2), 1.0)
    assert condition["resolution"].tolist() == [[64.0, 48.0]] * 2
    assert condition["aspect_ratio"].tolist() == [[pytest.approx(64 / 48)]] * 2


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("cls", [PixArtSigmaPipeline, PixArtAlphaPipeline])
def test_pixart_regenerates_by_its_own_call(cls, scale):
    pipe = pixart(cls, 128 if cls is PixArtAlphaPipeline else 32)
    x = 0.5 * torch.randn(2, 4, 8, 6, generator=torch.Generator().manual_seed(1))
    settings = {"num_inference_steps": 4, "guidance_scale": scale}
    there = invert(
        pipe, x, [LONG, SHORT], method=FixedPoint(60, "anderson", tolerance=1e-13), dtype="float64", **settings
    )
    back = reconstruct(pipe, there, output_type="pt")
    assert distance(back.latents, x) < 1e-7
    settings |= {"latents": there.latents.float(), "height": 64, "width": 48, "use_resolution_binning": False}
    assert metrics.psnr(pipe([LONG, SHORT], output_type="pt", **settings).images, back.images).min() > 50
