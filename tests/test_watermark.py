"""Watermarks in x_T: what is drawn is found, what is not there is not found more often than p says, keys are files."""

import hashlib
import math
from dataclasses import replace

import pytest
import torch
from PIL import Image
from scipy import stats
from watermarks import KEYS, A, B, key

from benchmarks.watermark import measure
from benchmarks.watermark import report as pages
from invfast import demo, invert
from invfast.analysis import gaussian, normality
from invfast.reference import watermark as reference
from invfast.watermark import (
    GaussianShading,
    RingID,
    TreeRing,
    detect,
    sample,
    score,
    shape_of,
)
from invfast.watermark.attacks import ATTACKS, blur, crop, jpeg, noise, rotate
from invfast.watermark.fourier import back, radii, rings, transform

SHAPES = ((4, 16, 16), (16, 64, 64), (3, 32, 32), (4, 24, 20), (4, 17, 15))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KEYS)
def test_what_is_embedded_is_found(kind, shape):
    own, other = key(kind, shape), key(kind, shape, B)
    latents = own.embed(3, [torch.Generator().manual_seed(j) for j in range(3)])
    assert latents.shape == (3, *shape)
    assert latents.dtype == torch.float32
    assert not torch.equal(latents[0], latents[1])
    for found in score(latents, own):
        assert found.p_value < (1e-6 if kind == "ring" else 1e-9)
        assert found.statistic > (0.99 if kind == "gaussian_shading" else -1e-6)
        assert found.bits == getattr(own, "message", "")
        assert found.bit_accuracy == (1.0 if found.bits else None)
    if kind != "zeros":  # there all keys are one
        assert all(found.p_value > 1e-4 for found in score(latents, other))


@pytest.mark.parametrize("kind", KEYS)
def test_without_a_watermark_p_is_uniform(kind):
    p = torch.tensor([one.p_value for one in score(gaussian((600, 4, 32, 32), 5), key(kind, (4, 32, 32)))])
    assert stats.kstest(p.numpy(), "uniform").statistic < 0.085  # a true uniform's is above once in 3,000 times
    assert abs(float((p < 0.1).double().mean()) - 0.1) < 0.05


@pytest.mark.parametrize("kind", ["ring", "rand", "gaussian_shading", "ring_id"])
def test_what_is_no_noise_is_no_watermark(kind):
    """Latents of any colour: power in low frequencies, in high ones, in all alike but little."""
    x, far = gaussian((300, 4, 16, 16), 6).double(), rings(16, 16, 6) >= 0
    for low, high in ((3, 0.3), (0.1, 1), (0.01, 0.01)):
        coloured = back(transform(x) * torch.where(far, low, high))
        for secret in (A, B):
            p = [one.p_value for one in score(coloured, key(kind, secret=secret))]
            assert sum(each < 0.02 for each in p) <= 15  # 6 are expected


@pytest.mark.parametrize("kind", ["ring", "rand", "gaussian_shading"])
@pytest.mark.parametrize("power", [1, 2])
def test_p_holds_for_the_colours_of_pictures(kind, power):
    """Spectra that fall with the frequency, within a key's disc too, over many keys."""
    colour = radii(16, 16).clamp(min=0.5) ** -power
    x = back(transform(gaussian((2, 4, 16, 16), 6).double()) * colour)
    secrets = [hashlib.sha256(b"%d" % j).hexdigest() for j in range(1500)]
    p = torch.tensor([one.p_value for secret in secrets for one in score(x, key(kind, secret=secret))])
    assert float((p < 0.1).double().mean()) < 0.13
    assert float((p < 0.01).double().mean()) < 0.018
    assert float((p < 1e-4).double().mean()) < 0.0015


def test_the_papers_p_is_cautious():
    """Why `read` has another."""
    for kind in ("ring", "rand"):
        p = key(kind).paper_p(gaussian((600, 4, 16, 16), 5))
        assert 0.4 < float(p.mean()) < 0.6
        assert 0.015 < float((p < 0.1).double().mean()) < 0.085
        assert key(kind).paper_p(key(kind).embed(1)) < 1e-9
    assert key("zeros").paper_p(gaussian((50, 4, 16, 16), 5)).std() < 1e-9


@pytest.mark.parametrize("shape", [(4, 16, 16), (16, 32, 32)])
def test_gaussian_shading_is_normal(shape):
    """Over keys: one key's signs are not as often + as -, as those of any one latent are not."""
    keys = [replace(key("gaussian_shading", shape), nonce=f"{j:02x}") for j in range(24)]
    found = normality(torch.cat([one.embed(1, torch.Generator().manual_seed(j)) for j, one in enumerate(keys)]))
    assert abs(found.mean) < 0.02
    assert abs(found.std - 1) < 0.02
    assert abs(found.kurtosis - 3) < 0.1
    assert found.ks_rejected <= 4 / 24
    assert found.shapiro_rejected <= 4 / 24


@pytest.mark.parametrize("kind", ["ring", "rand", "zeros", "ring_id"])
def test_rings_leave_the_other_coefficients(kind):
    own, start = key(kind), gaussian((2, 4, 16, 16), 8).double()
    marked = own.mark(start)
    mask = rings(16, 16, own.radius, getattr(own, "inner", 0)) >= 0
    for channel in range(4):
        before, after = transform(start[:, channel]), transform(marked[:, channel])
        assert torch.allclose(after[:, ~mask], before[:, ~mask], atol=1e-12)
        touched = channel == 3 or (kind == "ring_id" and channel == 0)
        assert torch.allclose(after, before, atol=1e-12) != touched


def test_rings_stay_when_latents_are_turned():
    for own in (key("ring"), RingID((4, 17, 17), A, "101101", 7, 1, (3,), ())):
        turned = own.embed(1, torch.Generator().manual_seed(0)).rot90(1, (2, 3))
        if own.shape[1] % 2 == 0:
            turned = turned.roll(1, 2)  # about element 0, not between elements
        assert score(turned, own)[0].p_value < 1e-6
    moved = key("rand").embed(1, torch.Generator().manual_seed(0)).rot90(1, (2, 3)).roll(1, 2)
    assert score(moved, key("rand"))[0].p_value > 1e-4


def test_ring_id_lies_in_the_middle():
    own = RingID((1, 32, 32), A, "1" * 6, 7, 1, (0,), ())
    pattern = back(torch.where(rings(32, 32, 7, 1) >= 0, own._keys(own._rings())[0], 0))
    assert pattern.abs().argmax() == 16 * 32 + 16
    assert torch.allclose(own.mark(pattern[None, None]), pattern[None, None], atol=1e-12)


# Long-hand


@pytest.mark.parametrize("kind", ["ring", "rand"])
def test_rings_long_hand(kind):
    own = TreeRing((1, 10, 8), A, kind, 3, 0)
    pattern, mask = own._key()
    start = gaussian((1, 1, 10, 8), 2).double()
    y, long = reference.coefficients(start[0, 0]), {}
    for v, u in y:
        assert bool(mask[v, u]) == (reference.ring_of(v, u, 10, 8) <= 3)
        if mask[v, u]:
            long[v, u] = complex(pattern[v, u])
    assert torch.allclose(own.mark(start)[0, 0], reference.from_coefficients(y | long, 10, 8), atol=1e-12)
    distance, eta, degrees, power = reference.statistic(start[0, 0], long)
    (found,) = score(start, own)
    assert found.statistic == pytest.approx(-distance, rel=1e-12)
    assert float(own.paper_p(start)) == pytest.approx(stats.ncx2.cdf(eta, degrees, power), rel=1e-9)
    if kind == "ring":
        y, told = [], list(dict.fromkeys(long.values()))
        for value in told:
            own_ring = [c.real for at, c in reference.coefficients(start[0, 0]).items() if long.get(at) == value]
            y.append(sum(own_ring) / (len(own_ring) + 1))
        cosine = sum(a * k for a, k in zip(y, told, strict=True)).real / math.hypot(*y) / math.hypot(*map(abs, told))
        t = cosine * math.sqrt((len(told) - 1) / (1 - cosine**2))
        assert found.p_value == pytest.approx(stats.t.sf(t, len(told) - 1), rel=1e-9)
        return
    cosine = (degrees + power - eta) / 2 / math.sqrt(degrees * power)  # all that eta says of the key
    t = cosine * math.sqrt((degrees - 1) / (1 - cosine**2))
    assert found.p_value == pytest.approx(stats.t.sf(t, degrees - 1), rel=1e-9)


def test_gaussian_shading_long_hand():
    own = GaussianShading((2, 6, 6), A, "01101100", (1, 3, 3), "")
    noise = gaussian((1, 2, 6, 6), 4).double()
    marked = own.mark(noise)[0]
    stream = own._stream() < 0
    for at in torch.ones(2, 6, 6).nonzero().tolist():
        c, i, j = at
        bit = int("01101100"[4 * c + 2 * (i % 2) + j % 2]) ^ int(stream[c, i, j])
        half = float(torch.special.ndtr(noise[0, c, i, j].abs()))
        u = 2 * half - 1 if bit else 2 * (1 - half)
        assert float(marked[c, i, j]) == pytest.approx(reference.truncated(bit, u), rel=1e-6)
    changed = torch.where(gaussian((2, 6, 6), 9) > 0.8, -marked, marked)  # nine copies: no ties
    assert reference.voted(marked, stream, own.copies) == [int(bit) for bit in own.message]
    assert "".join(map(str, reference.voted(changed, stream, own.copies))) == score(changed[None], own)[0].bits


def test_ties_are_decided_by_magnitude():
    own = GaussianShading((1, 1, 2), A, "1", (1, 1, 2), "")
    signs = own._signs()
    for large, bit in ((2.0, "1"), (0.5, "0")):
        x = signs * torch.tensor([[[large, -1.0]]])
        assert score(x[None], own)[0].bits == bit


def test_the_binomial_threshold():
    own = GaussianShading.new((4, 64, 64))
    assert len(own.message) == 256
    for fpr, keys in ((0.01, 1), (1e-6, 1), (1e-6, 100_000)):
        least = own.threshold(fpr, keys)
        each = [stats.binom.sf(k - 1, 256, 0.5) for k in (least, least - 1)]
        assert 1 - (1 - each[0]) ** keys <= fpr * (1 + 1e-6) < 1 - (1 - each[1]) ** keys
    with pytest.raises(ValueError, match="16 bits cannot tell 1000 keys"):
        GaussianShading.new((4, 16, 16)).threshold(1e-6, 1000)
    for fpr in (0, 1, "x"):
        with pytest.raises(ValueError, match="fpr must lie between 0 and 1"):
            own.threshold(fpr)


# Whose it is


def test_the_surest_of_many_keys():
    keys = [RingID((4, 16, 16), A, f"{j:06b}", 7, 1, (3,), (0,)) for j in range(18)]
    found = score(torch.cat([keys[j].embed(1, torch.Generator().manual_seed(j)) for j in (3, 17)]), keys)
    assert [(one.key, one.bits) for one in found] == [(3, "000011"), (17, "010001")]
    nothing = score(gaussian((200, 4, 16, 16), 1), keys)
    assert sum(one.p_value < 0.05 for one in nothing) <= 25


# On pipelines


def test_from_key_to_image_and_back(pipe):
    own, other = key("gaussian_shading"), key("gaussian_shading", secret=B)
    latents = torch.cat([own.embed(1, torch.Generator().manual_seed(3)), gaussian((1, 4, 16, 16))])
    images = sample(pipe, latents, "noto peach", num_inference_steps=6, guidance_scale=1).images
    found = detect(pipe, images, [other, own], method="ddim", num_inference_steps=6)
    marked, plain = found.scores
    assert marked.key == 1
    assert marked.p_value < 1e-4
    assert marked.bit_accuracy > 0.8
    assert plain.p_value > 0.01
    assert found.scores == score(found.inversion, [other, own])
    twice = images[0].resize((128, 96), Image.Resampling.BICUBIC)  # resized to what the key is for
    assert detect(pipe, twice, own, method="ddim", num_inference_steps=2).inversion.latents.shape[1:] == own.shape


def test_on_a_flow():
    pipe = demo.load_flow_pipeline()
    assert shape_of(pipe, 64, 64) == (4, 16, 16)
    own, how = key("gaussian_shading"), {"num_inference_steps": 8}
    latents = own.embed(1, torch.Generator().manual_seed(0))
    images = sample(pipe, latents, "noto peach", guidance_scale=1, **how).images
    (found,) = detect(pipe, images, own, "noto peach", method="ddim", **how).scores
    assert found.p_value < 1e-4


def test_in_pixel_space():
    pipe = demo.load_pixel_pipeline()
    own = key("gaussian_shading", shape_of(pipe))
    assert own.shape == (3, 32, 32)
    images = sample(pipe, own.embed(1, torch.Generator().manual_seed(0)), num_inference_steps=4, guidance_scale=1)
    (found,) = detect(pipe, images.images, own, method="ddim", num_inference_steps=4).scores
    assert found.p_value < 1e-6


def test_shapes_of_pipelines(pipe):
    assert shape_of(pipe, 128, 96) == (4, 32, 24)
    with pytest.raises(ValueError, match="height must be a positive multiple of 4, got 66"):
        shape_of(pipe, 66)
    with pytest.raises(TypeError):
        shape_of(object())


def test_an_inversion_that_was_interrupted(tiny):
    def stop(pipe, step, t, tensors):
        pipe._interrupt = True

    inversion = invert(tiny, gaussian((1, 4, 16, 16)), method="ddim", num_inference_steps=4, callback_on_step_end=stop)
    with pytest.raises(ValueError, match="interrupted at node 1 of 4"):
        score(inversion, key("ring"))


# Attacks


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_keep_size_and_repeat(name, peach):
    one, two = ATTACKS[name](peach, 3), ATTACKS[name](peach, 3)
    assert (one.size, one.mode) == (peach.size, "RGB")
    assert one.tobytes() == two.tobytes()
    assert (one.tobytes() == peach.tobytes()) == (name == "none")


def test_what_attacks_do():
    grey = Image.new("RGB", (64, 64), (100, 100, 100))
    assert blur(grey).tobytes() == grey.tobytes()
    values = torch.frombuffer(bytearray(noise(grey, 0.05).tobytes()), dtype=torch.uint8).double()
    assert float(values.std()) == pytest.approx(0.05 * 255, rel=0.05)
    assert ATTACKS["brightness"](grey, 0).getpixel((3, 3)) == (200, 200, 200)
    assert rotate(grey, 45).getpixel((0, 0)) == (0, 0, 0)
    half = Image.new("RGB", (64, 64))
    half.paste((255, 255, 255), (32, 0, 64, 64))
    seen = {crop(half, 0.25, seed).getpixel((20, 20)) for seed in range(20)}
    assert {(0, 0, 0), (255, 255, 255)} <= seen
    assert jpeg(half, 5).tobytes() != jpeg(half, 95).tobytes()


# The benchmark


def test_what_the_benchmark_judges():
    x = gaussian((300, 4, 16, 16), 1)
    own = key("gaussian_shading")
    plain, marked = score(x, own), score(own.embed(20, torch.Generator().manual_seed(0)), own)
    perfect = measure.judged(list(plain), list(marked))
    assert (perfect["auc"], perfect["tpr"], perfect["below"], perfect["bit_accuracy"]) == (1, 1, 1, 1)
    assert perfect["false"] < 0.03
    chance = measure.judged(list(plain[:200]), list(plain[200:]))
    assert abs(chance["auc"] - 0.5) < 0.12
    assert chance["tpr"] < 0.1


def test_the_report_follows_from_the_rows():
    kept = measure.wanted(measure.read(measure.rows.RESULTS / "watermark.jsonl"))
    if not kept:
        pytest.skip("no rows: make watermark")
    page = (measure.rows.RESULTS.parents[1] / "docs" / "watermark.md").read_text()
    assert pages.tables(kept) in page
    assert pages.picture(kept).startswith(b"\x89PNG")
