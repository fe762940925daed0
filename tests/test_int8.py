"""int8 on OpenVINO: quantised on the network's own latents, and one network for an inversion and its way back."""

import importlib.util
import itertools
import re
import warnings
from functools import partial

import pytest
import torch
from exact import as_exact_as_eager, steps
from tiny import stable_diffusion
from toy import distance

from invfast import Inversion, invert, metrics, reconstruct, release
from invfast.adapters import Prompts, StableDiffusion, unets
from invfast.denoiser import calibration
from invfast.runtimes import RUNTIMES, Spec
from invfast.runtimes.cache import Cache

CPU = torch.device("cpu")
OPTIONS = {"num_inference_steps": 10, "runtime": "openvino", "dtype": "int8"}


@pytest.fixture
def needs():
    pytest.importorskip("openvino", reason="int8 runs on openvino")
    pytest.importorskip("nncf", reason="int8 is made by nncf")


@pytest.fixture(scope="module")
def images(samples):
    return [samples[name].image for name in ("peach", "cat")], ["noto peach", "photo cat"]


def entries():
    return {entry.key: entry for entry in Cache().entries() if "int8" in entry.inputs}


@pytest.mark.slow
@pytest.mark.usefixtures("needs")
def test_an_exact_method_undoes_a_quantised_network(pipe, images, tmp_path):
    found = {}
    for method in ("ddim", "anderson"):
        there = invert(pipe, *images, method=method, **OPTIONS)
        back = reconstruct(pipe, there, output_type="latent", runtime="openvino", dtype="int8")
        assert there.stats.dtype == back.stats.dtype == torch.int8
        assert there.stats.runtime == "openvino"
        assert there.latents.dtype == torch.float32
        found[method] = metrics.latent_psnr(back.latents, there.init_latents).mean()
    assert found["anderson"] > found["ddim"] + 10
    full = invert(pipe, *images, method="anderson", num_inference_steps=10, runtime="eager")
    assert 1e-4 < distance(there.latents, full.latents) < 0.1  # another network, of nearly the same function
    there.save(tmp_path / "a.safetensors")
    loaded = Inversion.load(tmp_path / "a.safetensors")
    assert loaded.stats.dtype == torch.int8
    assert loaded.provenance["quantised"] == there.provenance["quantised"]
    assert full.provenance["quantised"] is None

    # One network for every image, prompt, batch and method: neither calls since nor another image made a second one.
    before = entries()
    inverting = partial(invert, pipe, method="anderson", num_inference_steps=10)
    path, _ = steps(partial(inverting, *images, runtime="eager", dtype="float64"))
    both, _ = steps(partial(inverting, *images, **OPTIONS), path)
    exact, both = ([latents[1:] for latents in run] for run in (path, both))
    found, alone = steps(partial(inverting, images[0][1], images[1][1], **OPTIONS), exact)
    assert entries() == before
    as_exact_as_eager(found, both, exact)  # rounding to int8 makes steps of some last bits, in a batch of others
    assert alone.provenance["quantised"] == there.provenance["quantised"]
    (made,) = [entry.inputs["int8"] for entry in before.values() if entry.inputs["int8"]["shape"] == [4, 16, 16]]
    assert made["texts"] == list(calibration.TEXTS)
    there.provenance["quantised"] = "another"
    with pytest.warns(UserWarning, match="the int8 network is not the one that the inversion was made with"):
        back = reconstruct(pipe, there, output_type="latent", dtype="int8")
    assert (back.stats.runtime, back.stats.reason) == ("openvino", "as the inversion ran")


@pytest.mark.slow
@pytest.mark.usefixtures("needs")
def test_what_is_gone_is_made_again_the_same(tiny, peach):
    there = invert(tiny, peach, **OPTIONS)
    (mine,) = [key for key, entry in entries().items() if entry.inputs["int8"]["shape"] == [4, 8, 8]]
    first = reconstruct(tiny, there, output_type="latent", runtime="openvino", dtype="int8")
    Cache().remove(mine)
    release()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        back = reconstruct(tiny, there, output_type="latent", runtime="openvino", dtype="int8")
    assert mine in entries()
    assert torch.equal(back.latents, first.latents)


def test_the_key_knows_what_the_samples_come_from(tiny, monkeypatch):
    model = StableDiffusion(tiny, "eager", "float32")
    example = {"x": torch.zeros(1, 4, 8, 8), "encoder_hidden_states": torch.zeros(1, 12, 32)}
    says = lambda **other: model._calibration({**example, **other}).says  # noqa: E731
    found = [says(), says(x=torch.zeros(1, 4, 16, 8))]
    assert says(x=torch.zeros(3, 4, 8, 8)) == found[0]  # nor does the batch matter
    with monkeypatch.context() as patch:
        patch.setattr(tiny.scheduler, "alphas_cumprod", tiny.scheduler.alphas_cumprod**2)
        found.append(says())
    with monkeypatch.context() as patch:
        patch.setattr(tiny, "text_encoder", stable_diffusion().text_encoder)
        next(tiny.text_encoder.parameters()).data += 1
        found.append(says())
    assert all(a != b for a, b in itertools.combinations(found, 2))
    monkeypatch.setattr(tiny, "text_encoder", None)
    with pytest.raises(ValueError, match="the pipeline has no text_encoder"):
        says()


@pytest.mark.parametrize("runtime", [name for name in RUNTIMES if name != "openvino"])
def test_other_runtimes_refuse_by_name(runtime):
    said = RUNTIMES[runtime].refuses(CPU, torch.int8)
    assert said
    assert "int8" in said or "the pipeline is on cpu" in said


def test_what_is_missing_is_named(tiny, peach, monkeypatch):
    with pytest.raises(ValueError, match=r"'eager' cannot run this network.*torch.int8; for int8 take runtime='openv"):
        invert(tiny, peach, runtime="eager", dtype="int8")
    with pytest.raises(ValueError, match="float16, float64, int8"):
        invert(tiny, peach, dtype="int4")
    pytest.importorskip("openvino", reason="int8 runs on openvino")
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "nncf" else found(name))
    with pytest.raises(ValueError, match=r"int8 needs the module 'nncf' \(pip install \"invfast\[int8\]\"\)"):
        invert(tiny, peach, **OPTIONS)
    monkeypatch.undo()
    pytest.importorskip("nncf", reason="int8 is made by nncf")
    spec = Spec(CPU, torch.int8, lambda: "network")
    with pytest.raises(ValueError, match="pass a Spec with a calibration"):
        RUNTIMES["openvino"].prepare(tiny.unet, {"x": torch.zeros(1, 4, 8, 8), "t": torch.tensor(0)}, spec)


def test_samples_are_the_networks_own_way_down(tiny):
    model = StableDiffusion(tiny, "eager", "float32")
    example = {
        "x": torch.zeros(2, 4, 8, 8),
        "t": torch.tensor(0.0),
        **model.condition(torch.zeros(2, 4, 8, 8), Prompts(["", ""]), 1.0)[0],
    }
    first, second = (model._calibration(example).samples() for _ in range(2))
    assert len(first) == calibration.STEPS * len(calibration.TEXTS)
    for a, b in zip(first, second, strict=True):
        assert {name: tuple(value.shape) for name, value in a.items()} == {
            "x": (1, 4, 8, 8),
            "t": (),
            "encoder_hidden_states": (1, *example["encoder_hidden_states"].shape[1:]),
        }
        assert a["t"].dtype == torch.float32
        assert all(torch.equal(a[name], b[name]) for name in a)
    assert float(first[0]["t"]) > float(first[-1]["t"])
    assert abs(first[0]["x"].std() - 1) < 0.2  # noise
    texts = len(calibration.TEXTS)
    assert len({tuple(each["encoder_hidden_states"].flatten()[-8:].tolist()) for each in first[:texts]}) > 1


def test_what_stays_in_float():
    patterns = unets.form(stable_diffusion().unet).in_float
    kept = lambda name: any(re.match(each, f"__module.module.{name}/aten") for each in patterns)  # noqa: E731
    for name in ("conv_in", "conv_out", "time_embedding.linear_1", "mid_block.resnets.0.time_emb_proj"):
        assert kept(name)
    assert kept("up_blocks.2.resnets.0.conv1")
    assert kept("mid_block.attentions.0.transformer_blocks.0.attn2.to_k")
    assert not kept("mid_block.attentions.0.transformer_blocks.0.attn2.to_q")
    assert not kept("mid_block.attentions.0.transformer_blocks.0.attn1.to_k")
    assert not kept("up_blocks.1.resnets.0.conv1")
    assert not kept("down_blocks.1.resnets.0.conv1")
