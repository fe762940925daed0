"""Inversions side by side, elsewhere, in another dtype, and what a prompt or a notebook shows of one."""

import base64
import dataclasses
import re
from io import BytesIO

import pytest
import torch
from PIL import Image
from tiny import QUICK, stable_diffusion_xl
from tiny_transformers import stable_diffusion_3

from invfast import Inversion, invert, reconstruct
from invfast.methods import METHODS, FixedPoint, ForwardStart
from invfast.stored import check_shapes


@pytest.fixture(scope="module")
def batch(tiny):
    method = ForwardStart(1, FixedPoint(4, "anderson", "linear", tolerance=1e-1))
    x = torch.randn(3, 4, 8, 6, generator=torch.Generator().manual_seed(1))
    return invert(tiny, x, ["a", "b", "<c>"], negative_prompt="d", method=method, save_trajectory=True, **QUICK)


def test_what_was_cut_is_put_together(batch, tmp_path, tiny):
    again = Inversion.concatenate([batch[0], batch[1:]])
    assert [x.seconds for x in (again.stats, batch.stats)] == [2 * batch.stats.seconds, batch.stats.seconds]
    assert again.stats.samples == 2 * batch.stats.samples
    stats = dataclasses.replace(again.stats, seconds=batch.stats.seconds, samples=batch.stats.samples)
    assert dataclasses.replace(again, stats=stats) == batch
    check_shapes(again)
    again.save(tmp_path / "a.safetensors")
    assert Inversion.load(tmp_path / "a.safetensors") == again
    assert Inversion.concatenate([batch]) == batch
    back = [reconstruct(tiny, each, output_type="latent").latents for each in (again, batch)]
    assert torch.equal(*back)
    turned = Inversion.concatenate([batch[2], batch[0]])
    assert turned.prompt == ["<c>", "a"]
    assert turned.stats.evaluations == (batch.stats.evaluations[2], batch.stats.evaluations[0])


def test_it_is_a_copy(batch):
    again = Inversion.concatenate([batch[0], batch[1:]])
    before = batch.latents.clone()
    again.latents.zero_()
    assert torch.equal(batch.latents, before)


def test_what_is_no_list_of_inversions(batch):
    for given, got in (
        (batch, "Inversion"),
        (batch.latents, "Tensor"),
        ([batch, None], "Inversion, NoneType"),
        (3, "int"),
    ):
        with pytest.raises(TypeError, match=rf"takes a list of inversions, as in \[a, b\], got {got}"):
            Inversion.concatenate(given)
    with pytest.raises(ValueError, match="the list is empty"):
        Inversion.concatenate([])


def test_what_differs_is_named(batch):
    def other(message, **changes):
        with pytest.raises(ValueError, match=message):
            Inversion.concatenate([batch, dataclasses.replace(batch, **changes)])

    other("some of the inversions have trajectory and some have none", trajectory=None)
    other("differ in trajectory", trajectory=batch.trajectory[:-1])
    other("differ in state 'noise'", state={"noise": batch.state["noise"].double()})
    other("a negative_prompt and some have none; invert all with one, or none", negative_prompt=None)
    other("whether they have no stats", stats=None)
    other("network.weights", provenance={**batch.provenance, "network.weights": "others"})
    other("pipeline", provenance={**batch.provenance, "pipeline": "FluxPipeline"})
    other("original_size|what else", conditions={"original_size": [1, 2]})
    meta = dataclasses.replace(batch, latents=batch.latents.to("meta"))
    with pytest.raises(ValueError, match=r"latents lie on cpu and meta; move them with .to\(device\)"):
        Inversion.concatenate([batch, meta])


def test_of_versions_what_is_the_same_is_kept(batch):
    other = {**batch.provenance, "torch": "9.0", "network.settings": "as another version names them", "later": 1}
    again = Inversion.concatenate([batch, dataclasses.replace(batch, provenance=other)])
    assert {"torch", "network.settings"}.isdisjoint(again.provenance)
    assert again.provenance["later"] == 1
    assert again.provenance["diffusers"] == batch.provenance["diffusers"]
    assert len(again.provenance["prompt_embeds"]) == 6
    unknown = dataclasses.replace(batch, provenance={**batch.provenance, "prompt_embeds": None})
    assert Inversion.concatenate([batch, unknown]).provenance["prompt_embeds"] is None
    settings = {**batch.provenance, "network.settings": "another scale"}
    with pytest.raises(ValueError, match=r"network\.settings"):
        Inversion.concatenate([batch, dataclasses.replace(batch, provenance=settings)])


def test_made_by_hand(batch):
    alone = dataclasses.replace(batch, stats=None, provenance={}, trajectory=None)
    assert len(Inversion.concatenate([alone, alone])) == 6


@pytest.mark.parametrize("make", [stable_diffusion_xl, stable_diffusion_3])
def test_texts_of_later_encoders_go_with_their_image(make):
    pipe = make()
    last = "prompt_3" if hasattr(pipe, "transformer") else "prompt_2"
    x = torch.randn(2, 16 if last == "prompt_3" else 4, 8, 8, generator=torch.Generator().manual_seed(1))
    both = invert(pipe, x, ["a", "b"], method="ddim", **{last: ["c", "d"]}, **QUICK)
    assert both[1].conditions[last] == ["d"]
    reconstruct(pipe, both[1], output_type="latent")
    assert Inversion.concatenate([both[1], both[0]]).conditions[last] == ["d", "c"]


def test_elsewhere(batch):
    wide = batch.to(torch.float64)
    tensors = (wide.latents, wide.init_latents, wide.trajectory, *wide.state.values())
    assert {x.dtype for x in tensors} == {torch.float64}
    assert wide.to(dtype=torch.float32) == batch
    assert batch.to("cpu") == batch
    assert batch.to() == batch
    moved = batch.to("meta", torch.float64)
    assert (moved.latents.device.type, moved.latents.dtype) == ("meta", torch.float64)
    assert moved.trajectory.device.type == "cpu"
    check_shapes(wide)
    for dtype in (torch.float16, torch.bfloat16, torch.int64):
        with pytest.raises(ValueError, match="latents are kept in float32 or float64"):
            batch.to(dtype)
    with pytest.raises(RuntimeError, match="warp"):
        batch.to("warp")


def test_one_line(batch):
    said = repr(batch)
    assert said == str(batch)
    assert said == (
        "Inversion(3 images, latents 4 x 8 x 6 float32 on cpu, "
        "ForwardStart(steps=1, method=FixedPoint(iterations=4, mixing..., 4 steps, prompt 'a' and 2 more)"
    )
    long = dataclasses.replace(batch[0], prompt=["word\n" * 1000], node=3)
    assert len(repr(long)) < 300
    assert "\n" not in repr(long)
    assert "3 of 4 steps" in repr(long)
    assert "1 image," in repr(long)
    for changes in ({"stats": None}, {"prompt": None}, {"method": METHODS["auto"]}, {"state": {}}):
        assert len(repr(dataclasses.replace(batch, **changes))) < 300
    assert "0 images" in repr(batch[:0])


@pytest.mark.parametrize("shape", [(1, 4, 128, 128), (9, 16, 128, 96), (1, 1, 4, 4), (1, 2, 5, 7), (3, 3, 32, 32)])
def test_a_small_picture(shape, batch):
    x = 3 * torch.randn(shape, generator=torch.Generator().manual_seed(1))
    x[0, 0, 0, 0] = float("nan")
    said = dataclasses.replace(batch, latents=x, prompt=["<script>"])._repr_html_()
    assert len(said) < 20_000
    assert "<script>" not in said
    (data,) = re.findall(r'src="data:image/png;base64,([^"]+)"', said)
    picture = Image.open(BytesIO(base64.b64decode(data)))
    assert picture.mode == "RGB"
    assert max(picture.size) <= 4 * 33
    assert batch[:0]._repr_html_()
