"""Reconstruction on the bundled model at 50 steps, all sample images: wide floors, for the model will be retrained."""

import pytest

from invfast import invert, metrics, reconstruct
from invfast.methods import DDIM, Auto, FixedPoint, ForwardStart

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def measured(pipe, samples):
    images, prompts = zip(*samples.values(), strict=True)
    methods = {
        "ddim": DDIM(),
        "warm start": FixedPoint(1, warm_start="constant"),
        "anderson": FixedPoint(5, "anderson"),
        "forward start": ForwardStart(2),
        "auto": Auto(70),
    }
    found = {}
    for name, method in methods.items():
        inv = invert(pipe, list(images), list(prompts), method=method)
        latents = reconstruct(pipe, inv, output_type="latent").latents
        found[name] = metrics.latent_psnr(latents, inv.init_latents), inv
    return found


def test_every_image_gains_with_every_evaluation_well_spent(measured):
    ddim, warm, anderson = (measured[name][0] for name in ("ddim", "warm start", "anderson"))
    assert ddim.mean() > 36
    assert (warm - ddim).min() > 8
    assert (anderson - warm).min() > 12


def test_auto_reaches_its_target_for_little(measured):
    (quality, inv), (warm, _) = measured["auto"], measured["warm start"]
    assert quality.median() > 70
    assert (quality - warm).min() > 6
    assert sum(inv.stats.evaluations) < 1.25 * 50 * len(inv)


def test_the_forward_start_finds_noise(measured):
    quality, inv = measured["forward start"]
    assert quality.mean() > 32
    assert abs(float(inv.latents.std()) - 1) < 0.05
    assert abs(float(metrics.kurtosis(inv.latents).mean()) - 3) < 0.15
