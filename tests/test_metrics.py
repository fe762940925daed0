"""Known values, and an implementation nobody here wrote."""

import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from invfast import metrics


def test_psnr_of_a_known_pair():
    x = torch.full((2, 3, 8, 8), 0.5)
    assert metrics.psnr(x + 0.1, x).tolist() == pytest.approx([20.0, 20.0], abs=1e-5)
    assert metrics.psnr(x, x).tolist() == [float("inf")] * 2


def test_latent_psnr_takes_each_latents_own_range():
    target = torch.zeros(2, 4, 4, 4, dtype=torch.float64)
    target[0, 0, 0, 0], target[1, 0, 0, 0] = 10, -1
    assert metrics.latent_psnr(target + 0.1, target).tolist() == pytest.approx([40.0, 20.0], abs=1e-5)


def test_against_scikit_image():
    a, b = torch.rand(2, 2, 3, 32, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    b = 0.7 * a + 0.3 * b
    for j in range(2):
        x, y = (v[j].permute(1, 2, 0).numpy() for v in (a, b))
        settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
        wanted = structural_similarity(y, x, data_range=1, channel_axis=2, **settings)
        assert float(metrics.ssim(a, b)[j]) == pytest.approx(wanted, abs=2e-3)  # the borders are cut differently
        assert float(metrics.psnr(a, b)[j]) == pytest.approx(peak_signal_noise_ratio(y, x, data_range=1), abs=1e-6)


def test_kurtosis():
    x = torch.randn(1, 4, 200, 200, generator=torch.Generator().manual_seed(0))
    assert float(metrics.kurtosis(x)) == pytest.approx(3, abs=0.05)
    assert float(metrics.kurtosis(torch.rand(1, 4, 200, 200))) == pytest.approx(1.8, abs=0.02)
