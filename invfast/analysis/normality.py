"""Whether latents are distributed as N(0, I): two tests of each latent, moments, quantiles, and a divergence.

There and Back Again (arXiv 2410.23530), section 3: Shapiro and Wilk's test of at most 5,000 elements of each latent,
and the divergence of Gaussians fitted to every element over the batch,

    KL(noise || latents) = 1/2 mean [ v_n / v_l + (m_n - m_l)^2 / v_l - 1 + log(v_l / v_n) ]       per element.

Kolmogorov and Smirnov's test is against N(0, 1) itself and of all elements: it sees a wrong scale, Shapiro's does not.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from invfast import metrics
from invfast.ambient import neutral
from invfast.analysis.base import SEED, Result, TooSmallError, alike, checked, scipy_stats

LEVEL = 0.05
"""A latent is rejected where its p is below."""
SHAPIRO = 5000
"""Elements of a latent that Shapiro's test is given at most; its p is not accurate for more."""
QUANTILES = 199


@dataclass(frozen=True, repr=False)
class Normality(Result):
    """Figures of one set of latents.

    Args:
        n: latents.
        mean: of all their values; 0 for noise.
        std: of all their values; 1 for noise.
        kurtosis: fourth standardised moment, mean over latents; 3 for noise.
        shapiro_rejected: share of latents that Shapiro and Wilk's test rejects at p < .05; .05 for noise.
        ks_rejected: likewise Kolmogorov and Smirnov's, against N(0, 1).
        ks_distance: its largest distance between the distributions, mean over latents.
        expected: quantiles of N(0, 1) at (k - 1/2) / 199, for a QQ plot.
        observed: those of all values of the latents.
    """

    n: int
    mean: float
    std: float
    kurtosis: float
    shapiro_rejected: float
    ks_rejected: float
    ks_distance: float
    expected: tuple[float, ...]
    observed: tuple[float, ...]


@neutral()
def normality(latents: torch.Tensor, *, seed: int = SEED) -> Normality:
    """Tests, moments and quantiles of latents.

    Args:
        latents: (n, C, h, w) of at least 3 elements each, finite floats on any device.
        seed: which elements Shapiro's test is given of larger latents; the same of each.

    Raises:
        TypeError, ValueError: latents that cannot be used.
        ImportError: scipy is missing.
    """
    x = checked("latents", latents)
    stats, flat = scipy_stats(), x.flatten(1)
    if flat.shape[1] < 3:
        raise TooSmallError(f"normality needs latents of at least 3 elements, got {tuple(x.shape)}")
    chosen = torch.randperm(flat.shape[1], generator=torch.Generator().manual_seed(seed), device="cpu")[:SHAPIRO]
    shapiro, ks, distance = [], [], []
    for values in flat:
        some = values[chosen].double().numpy()
        # Of a latent of one value the test only warns; it is no noise.
        shapiro.append(0.0 if some.min() == some.max() else stats.shapiro(some).pvalue)
        against = stats.kstest(values.double().numpy(), "norm")
        ks.append(against.pvalue)
        distance.append(against.statistic)
    at = (torch.arange(QUANTILES, dtype=torch.float64) + 0.5) / QUANTILES
    return Normality(
        n=len(x),
        mean=float(flat.double().mean()),
        std=float(flat.double().std()),
        kurtosis=float(metrics.kurtosis(x).mean()),
        shapiro_rejected=_share_below(shapiro),
        ks_rejected=_share_below(ks),
        ks_distance=sum(map(float, distance)) / len(distance),
        expected=tuple(stats.norm.ppf(at.numpy()).tolist()),
        observed=tuple(_quantiles(flat, at)),
    )


@neutral()
def diagonal_kl(latents: torch.Tensor, noise: torch.Tensor) -> float:
    """KL(noise || latents) of Gaussians fitted to every element over the batch, in nats an element.

    Of two sets of true noise it is about 2 / n: small sets look different that are not.

    Args:
        latents: (n, C, h, w), at least 2, finite floats on any device.
        noise: (k, C, h, w), likewise.

    Returns:
        At least 0; infinite where an element never varies among the latents.

    Raises:
        TypeError, ValueError: tensors that cannot be used, or latents of different shapes.
    """
    x, n = checked("latents", latents, 2).double(), checked("noise", noise, 2).double()
    alike("one of the noise", n[:1], "latents", x[:1])
    v_x, v_n, m_x, m_n = x.var(0), n.var(0), x.mean(0), n.mean(0)
    if bool((v_x == 0).any()):
        return float("inf")
    each = v_n / v_x + (m_n - m_x) ** 2 / v_x - 1 + (v_x.log() - v_n.log())
    return float(each.mean()) / 2


def _share_below(p: list[float]) -> float:
    return sum(float(each) < LEVEL for each in p) / len(p)


def _quantiles(flat: torch.Tensor, at: torch.Tensor) -> list[float]:
    """numpy's, linear between neighbours; torch refuses more than 16 million values."""
    import numpy as np

    return np.quantile(flat.double().numpy(), at.numpy()).tolist()
