"""Decoder inversion: the latents that a picture was decoded from, for every autoencoder, and where it is refused."""

import pytest
import torch
from families import FAMILIES
from test_autoencoders import asymmetric, quantised, tiny_one
from test_caller import fingerprint
from tiny import QUICK, stable_diffusion
from toy import distance

from invfast import DecoderInversion, Inversion, adapters, invert, reconstruct
from invfast.adapters import decoder_inversion
from invfast.adapters.autoencoder import Autoencoder
from invfast.reference.solver import invert_decoder

LATENT = [name for name in FAMILIES if "Pixel" not in name and "DeepFloyd" not in name]


def linear(x):
    """An encoder after a decoder, that keep most of it and mix channels."""
    return 0.8 * x + 0.1 * x.roll(1, 1) + 0.02 * torch.sin(3 * x)


@pytest.mark.parametrize("settings", [(40, 0.5, 0.0), (40, 0.3, 0.5), (7, 0.1, 0.9), (1, 1.0, 0.0), (30, 2.0, 0.9)])
def test_equals_its_reference_and_a_batch_its_images(settings, x0):
    target = linear(x0)
    found, residual = decoder_inversion.inverted(linear, target, DecoderInversion(*settings))
    for j, row in enumerate(target.split(1)):
        wanted, left = invert_decoder(linear, row, *settings)
        assert distance(found[j : j + 1], wanted) < 1e-10
        assert abs(float(residual[j]) - left) < 1e-10
        alone, _ = decoder_inversion.inverted(linear, row, DecoderInversion(*settings))
        assert torch.equal(alone[0], found[j])
    before = distance(target, x0)
    if settings[0] == 40:
        assert distance(found, x0) < before / 1e3
    if settings[0] == 1:  # the encoder's latents, measured
        assert torch.equal(found, target)


def test_it_never_ends_farther_than_it_began(x0):
    target = linear(x0)
    _, began = decoder_inversion.inverted(linear, target, DecoderInversion(1))
    _, residual = decoder_inversion.inverted(lambda z: 3 * linear(z), target, DecoderInversion(20, 2.0, 0.9))
    assert bool((residual <= 3 * began + 3).all())
    assert decoder_inversion.inverted(linear, 0 * x0, DecoderInversion(2))[0].isfinite().all()


def test_on_a_trained_autoencoder_it_finds_what_was_decoded(pipe, samples, tmp_path):
    model = adapters.resolve(pipe)(pipe)
    pictures = [samples[name].image for name in ("peach", "cat")]
    z = model.encode(pictures, None, None)
    decoded = model.decode(z)
    how = DecoderInversion(30, 0.5, 0.5)
    before = fingerprint(pipe)
    options = {"prompt": ["", ""], "method": "ddim", "runtime": "eager", **QUICK}
    plain = invert(pipe, decoded, **options)
    found = invert(pipe, decoded, encode=how, **options)
    assert fingerprint(pipe) == before
    assert plain.stats.decoder_residual is None
    assert "encode" not in plain.provenance
    assert distance(found.init_latents, z) < 0.7 * distance(plain.init_latents, z)
    again = Autoencoder.of(model).encoded_again(found.init_latents)
    for j, residual in enumerate(found.stats.decoder_residual):
        assert abs(distance(again[j], plain.init_latents[j]) - residual) < 1e-4
    assert found.provenance["encode"] == repr(how)
    found.save(tmp_path / "x")
    assert Inversion.load(tmp_path / "x") == found
    one = found[1]
    assert one.stats.decoder_residual == found.stats.decoder_residual[1:]
    assert Inversion.concatenate([found[0], one]).stats.decoder_residual == found.stats.decoder_residual
    alone = invert(pipe, decoded[1:], encode=how, **{**options, "prompt": ""})
    assert torch.equal(alone.init_latents[0], found.init_latents[1])
    assert alone.stats.decoder_residual == one.stats.decoder_residual


@pytest.mark.parametrize("name", LATENT)
def test_every_family_with_an_autoencoder(name):
    """Random ones, so nothing is said of how near it gets: it runs, in their latents, and is never worse."""
    family = FAMILIES[name]
    pipe = next(iter(family.pipelines.values()))()
    model = adapters.resolve(pipe)(pipe)
    side = Autoencoder.of(model).factor * family.shape[1]
    picture = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    target = model.encode(picture, None, None)
    found, (residual,) = decoder_inversion.refined(model, target, DecoderInversion(3, 0.1, 0.5))
    _, (began,) = decoder_inversion.refined(model, target, DecoderInversion(1))
    assert found.shape == target.shape
    assert found.dtype == model.latent_dtype
    assert found.isfinite().all()
    assert residual <= began


@pytest.mark.parametrize("make", [tiny_one, quantised, asymmetric])
def test_other_autoencoders(make, peach):
    pipe = stable_diffusion()
    torch.manual_seed(0)
    pipe.vae = make().eval()
    found = invert(pipe, peach, encode=DecoderInversion(2), method="ddim", **QUICK)
    assert len(found.stats.decoder_residual) == 1
    assert reconstruct(pipe, found, output_type="latent").latents.isfinite().all()


def test_refusals(tiny, peach):
    for settings, message in (
        ({"iterations": 0}, "iterations must be an integer of at least 1, got 0"),
        ({"step": 0}, r"step must lie in \(0, 2\], got 0"),
        ({"momentum": 1.0}, r"momentum must lie in \[0, 1\), got 1"),
    ):
        with pytest.raises(ValueError, match=message):
            DecoderInversion(**settings)
    with pytest.raises(ValueError, match="unknown encode 'vae'; expected 'encoder', 'decoder' or a DecoderInversion"):
        invert(tiny, peach, encode="vae")
    with pytest.raises(TypeError, match="encode must be 'encoder', 'decoder' or a DecoderInversion, got int"):
        invert(tiny, peach, encode=3)
    with pytest.raises(ValueError, match="latents were given; leave it out, or decode"):
        invert(tiny, torch.zeros(1, 4, 8, 8), encode="decoder")
    pixels = next(iter(FAMILIES["Pixel space"].pipelines.values()))()
    with pytest.raises(ValueError, match="DDIMPipeline works on the pixels themselves and has no decoder to invert"):
        invert(pixels, peach, encode="decoder")


def test_an_autoencoder_that_overflows_says_so(peach):
    pipe = stable_diffusion()
    with torch.no_grad():
        pipe.vae.decoder.conv_out.weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(FloatingPointError, match="VAE's output became non-finite decoding"):
        invert(pipe, peach, encode="decoder", **QUICK)
