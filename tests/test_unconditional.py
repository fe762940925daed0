"""Pixel-space pipelines without a condition."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler
from tiny import pixel_unet, seeded
from toy import distance, grid

from invfast import Inversion, Schedule, invert, reconstruct
from invfast.analysis import gaussian, record, swap_up
from invfast.methods import DDIM, METHODS, FixedPoint
from invfast.reference import ddim


def pixel_pipeline(cls=DDPMPipeline, **config):
    scheduler = DDPMScheduler() if cls is DDPMPipeline else DDIMScheduler(set_alpha_to_one=False)
    return seeded(lambda: cls(unet=pixel_unet(**config), scheduler=scheduler))


@pytest.fixture(scope="module")
def picture(samples):
    return samples["peach"].image.resize((16, 16))


@pytest.mark.parametrize("cls", [DDPMPipeline, pytest.param(DDIMPipeline, marks=pytest.mark.slow)])
def test_there_and_back(cls, picture, tmp_path):
    pipe = pixel_pipeline(cls)
    method = FixedPoint(60, "anderson", tolerance=1e-12)
    inv = invert(pipe, [picture] * 2, method=method, num_inference_steps=20, dtype="float64")
    assert inv.latents.shape == (2, 3, 16, 16)
    assert inv.provenance["schedule.scheduler"] == type(pipe.scheduler).__name__
    inv.save(tmp_path / "x")
    out = reconstruct(pipe, Inversion.load(tmp_path / "x"), output_type="pt", dtype="float64")
    assert distance(out.latents, inv.init_latents) < 1e-7
    assert (out.images - (inv.init_latents / 2 + 0.5)).abs().max() < 1e-3


@pytest.mark.parametrize("name", [name for name, each in METHODS.items() if not each.flow_only])
def test_every_method(name, picture):
    if METHODS[name].guidance_scale:
        with pytest.raises(ValueError, match="DDPMPipeline knows no guidance"):
            invert(pixel_pipeline(), picture, method=name, num_inference_steps=5)
        return
    assert invert(pixel_pipeline(), picture, method=name, num_inference_steps=5).latents.isfinite().all()


def test_what_it_drew_is_inverted_as_it_is(tmp_path):
    """Pixels beyond 1 are part of x_0, and a batch without any below 0 is no image of 0 to 1."""
    pipe = pixel_pipeline()
    recording = record(pipe, gaussian((2, 3, 16, 16), 5), num_inference_steps=4)
    known = recording.inversion
    assert recording.latents.abs().max() > 1.001
    assert torch.equal(known.latents, recording.noise)
    known.save(tmp_path / "known")
    for given in (known, Inversion.load(tmp_path / "known")):
        found = invert(pipe, given, method=FixedPoint(60, "anderson", tolerance=1e-7), num_inference_steps=4)
        assert torch.equal(found.init_latents, recording.latents)
        assert distance(found.latents, recording.noise) < 1e-4
    bright = replace(known, init_latents=known.init_latents.abs())
    assert torch.equal(invert(pipe, bright, method="ddim", num_inference_steps=1).init_latents, bright.init_latents)
    with pytest.raises(ValueError, match="latents keep their size"):
        invert(pipe, known, height=32, width=32)
    with pytest.raises(ValueError, match=r"x_0 has shape \(2, 4, 16, 16\); DDPMPipeline needs 3 channels"):
        invert(pipe, replace(known, init_latents=torch.zeros(2, 4, 16, 16)))
    off = [distance(swap_up(pipe, known, recording.outputs, k).latents, recording.noise) for k in (0, 3)]
    assert off[1] < off[0]


def test_against_the_reference_in_float64(picture):
    pipe = pixel_pipeline()
    inv = invert(pipe, picture, method=DDIM(), num_inference_steps=5, dtype="float64")
    unet = pixel_pipeline().unet.double()
    with torch.inference_mode():
        wanted = ddim.invert(lambda x, t: unet(x, t).sample, inv.init_latents, grid(inv.schedule))
    assert distance(inv.latents, wanted) < 1e-10


@pytest.mark.parametrize(
    "kwargs",
    [
        {"prompt": "peach"},
        {"negative_prompt": "peach"},
        {"prompt_embeds": torch.zeros(1, 2, 3)},
        {"guidance_scale": 2.0},
    ],
)
@pytest.mark.filterwarnings("ignore:inverting at guidance_scale")
def test_a_condition_is_refused(kwargs, picture):
    with pytest.raises(ValueError, match=r"DDPMPipeline (takes no text: pass no prompt|knows no guidance: pass)"):
        invert(pixel_pipeline(), picture, **kwargs)


def test_networks_it_does_not_know_are_refused(picture):
    with pytest.raises(ValueError, match=r"DDPMPipeline cannot be inverted: its network takes 1 channels.* have 3"):
        invert(pixel_pipeline(in_channels=1), picture)
    with pytest.raises(ValueError, match=r"takes embeddings in place of class labels \(identity\)"):
        invert(pixel_pipeline(class_embed_type="identity"), picture, class_labels=1)


CONDITIONAL = {
    "learned variance": ({"out_channels": 6}, None),
    "classes": ({"num_class_embeds": 10}, [3, 7]),
    "both": ({"out_channels": 6, "num_class_embeds": 10}, [3, 7]),
}


@pytest.mark.parametrize(
    "case", ["both", *(pytest.param(case, marks=pytest.mark.slow) for case in ("learned variance", "classes"))]
)
def test_classes_and_learned_variances(case, picture, tmp_path):
    """As ADM's networks have them: the mean's three channels count, and labels are the condition."""
    config, labels = CONDITIONAL[case]
    pipe = pixel_pipeline(DDIMPipeline, **config)
    given = {} if labels is None else {"class_labels": labels}
    x = torch.stack([torch.from_numpy(np.asarray(picture)).permute(2, 0, 1) / 127.5 - 1] * 2).double()
    grid = Schedule.from_scheduler(pipe.scheduler, 5, compat="diffusers")
    found = invert(pipe, x, method="ddim", schedule=grid, dtype="float64", precompute=(), save_trajectory=True, **given)
    scheduler = DDIMInverseScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    for name in ("alphas_cumprod", "initial_alpha_cumprod"):
        setattr(scheduler, name, torch.as_tensor(getattr(scheduler, name)).double())
    scheduler.set_timesteps(5)
    network, told = pipe.unet.double(), None if labels is None else torch.tensor(labels)
    times = [t for t in scheduler.timesteps if int(t) in grid.t[1:].tolist()]  # the others move nothing
    for t, wanted in zip(times, found.trajectory[1:], strict=True):
        with torch.no_grad():
            x = scheduler.step(network(x, t, told).sample[:, :3], t, x).prev_sample
        assert distance(wanted, x) < 1e-10
    pipe.unet.float()
    exact = {"method": FixedPoint(60, "anderson", tolerance=1e-12), "num_inference_steps": 50, "dtype": "float64"}
    there = invert(pipe, [picture] * 2, **exact, **given)
    there.save(tmp_path / "x")
    there = Inversion.load(tmp_path / "x")
    assert there.conditions == given
    assert distance(reconstruct(pipe, there[1], output_type="latent").latents[0], there.init_latents[1]) < 1e-7
    if labels:
        assert not torch.equal(there.latents[0], there.latents[1])


@pytest.mark.parametrize(
    ("config", "given", "said"),
    [
        ({"num_class_embeds": 10}, {}, "needs class_labels, a number or one an image"),
        ({"num_class_embeds": 10}, {"class_labels": 10}, "2 integers of at least 0 below 10, got 10"),
        ({"num_class_embeds": 10}, {"class_labels": [1]}, "must be 2 integers"),
        ({"num_class_embeds": 10}, {"class_labels": [1.5, 2]}, "must be 2 integers"),
        ({}, {"class_labels": 1}, "knows no classes; pass no class_labels"),
    ],
)
def test_labels_are_checked(config, given, said, picture):
    with pytest.raises(ValueError, match=said):
        invert(pixel_pipeline(**config), [picture] * 2, **given)


def test_classes_told_as_times(picture):
    """Which diffusers embeds in float32 alone."""
    pipe = pixel_pipeline(class_embed_type="timestep")
    found = [invert(pipe, picture, num_inference_steps=3, class_labels=label).latents for label in (3, 3, 7)]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
