"""Figures of latents: equal to numpy's and scipy's, as far as noise allows, and refused where they mean nothing."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from invfast import analysis
from invfast.analysis import (
    PatchCorrelation,
    alignment,
    analyze,
    beside,
    correlation,
    diagonal_kl,
    gaussian,
    geometry,
    normality,
    permuted,
    plain_areas,
    plain_mask,
    self_interpolation,
    spectrum,
)
from invfast.analysis.base import noise_beside

ODD = (9, 3, 11, 7)
"""A few latents whose sides no patch divides."""
SAME = {"rel": 1e-6, "abs": 1e-9}


def planted(n, r=0.2, seed=0):
    """Noise in which one pair of neighbours knows of each other."""
    x = gaussian((n, 4, 16, 16), seed)
    x[:, 0, 3, 4] = r * x[:, 0, 3, 3] + math.sqrt(1 - r * r) * x[:, 0, 3, 4]
    return x


# Correlation


@pytest.mark.parametrize("shape", [ODD, (40, 4, 16, 16), (5, 1, 1, 9), (3, 2, 1, 1), (64, 1, 8, 3)])
def test_correlation_is_numpys(shape):
    x = gaussian(shape) * 3 + 7
    sums = PatchCorrelation()
    sums.add(x)
    tops, every = [], []
    corners = [(i, j) for i in range(0, shape[2], 8) for j in range(0, shape[3], 8)]
    for (i, j), own in zip(corners, sums.matrices(), strict=True):
        values = x[:, :, i : i + 8, j : j + 8].flatten(1).double().numpy()
        if values.shape[1] == 1:
            continue
        wanted = np.corrcoef(values.T)
        assert np.abs(own.numpy() - wanted).max() < 1e-6
        upper = np.sort(np.abs(wanted[np.triu_indices(len(wanted), 1)]))[::-1]
        tops.append(upper[:20].mean())
        every.append(upper)
    found = sums.result()
    assert found.by_patch == pytest.approx(tops, **SAME)
    assert found.top == pytest.approx(np.mean(tops), **SAME)
    assert found.top_std == pytest.approx(np.std(tops, ddof=1) if len(tops) > 1 else 0, **SAME)
    assert found.strongest == pytest.approx(max(map(max, every)), **SAME)
    assert (found.n, found.pairs) == (shape[0], sum(map(len, every)))


def test_its_threshold_is_that_of_scipys_test():
    found = correlation(gaussian((100, 1, 8, 8)))
    p = stats.pearsonr(np.arange(100.0), np.arange(100.0)[::-1]).pvalue
    assert p == 0
    r = found.threshold
    t = r * math.sqrt(98 / (1 - r * r))
    assert 2 * stats.t.sf(t, 98) * found.pairs == pytest.approx(0.01, **SAME)


@pytest.mark.parametrize("seed", range(2))
def test_a_planted_correlation_is_found_and_none_in_noise(seed):
    n = 2048
    found = correlation(planted(n, 0.2, seed))
    assert found.found == 1
    assert found.strongest == pytest.approx(0.2, abs=4 * 0.96 / math.sqrt(n))
    assert correlation(gaussian((n, 4, 16, 16), seed)).found == 0
    assert correlation(permuted(planted(n, 0.2, seed))).found == 0


def test_the_null_of_the_largest_falls_with_the_number():
    """The figure that the paper's protocol warns of: .16 at 512 latents."""
    tops = [correlation(gaussian((n, 4, 8, 8))).top for n in (128, 512, 2048)]
    assert tops == pytest.approx([0.322, 0.159, 0.081], abs=0.004)


@settings(max_examples=20)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.floats(-1e4, 1e4))
def test_batch_by_batch_is_at_once(sizes, offset):
    if sum(sizes) < 3:
        sizes = [*sizes, 2]
    x = gaussian((sum(sizes), 2, 9, 5)).double() + offset
    sums = PatchCorrelation()
    for part in x.split(sizes):
        sums.add(part)
    whole = correlation(x)
    for name, value in dataclasses.asdict(sums.result()).items():
        assert value == pytest.approx(getattr(whole, name), rel=1e-6), name


def test_an_element_that_never_varies_is_correlated_with_nothing():
    x = gaussian((10, 1, 4, 4))
    x[:, 0, 0, 0] = 3
    sums = PatchCorrelation()
    sums.add(x)
    (matrix,) = sums.matrices()
    assert matrix.isfinite().all()
    assert not matrix[0].any()


# Normality


def test_tests_and_moments_are_scipys():
    x = gaussian((6, 2, 11, 7)) * torch.tensor([1, 1, 0.5, 1, 1, 3]).reshape(-1, 1, 1, 1)
    x[1] = x[1].exp()
    found = normality(x)
    each = [v.numpy() for v in x.flatten(1).double()]
    assert found.shapiro_rejected == pytest.approx(np.mean([stats.shapiro(v).pvalue < 0.05 for v in each]), **SAME)
    assert found.ks_rejected == pytest.approx(np.mean([stats.kstest(v, "norm").pvalue < 0.05 for v in each]), **SAME)
    assert found.ks_distance == pytest.approx(np.mean([stats.kstest(v, "norm").statistic for v in each]), **SAME)
    every = np.concatenate(each)
    assert (found.mean, found.std) == pytest.approx((every.mean(), every.std(ddof=1)), **SAME)
    assert found.kurtosis == pytest.approx(np.mean([stats.kurtosis(v, fisher=False) for v in each]), **SAME)
    at = (np.arange(199) + 0.5) / 199
    assert found.expected == pytest.approx(stats.norm.ppf(at).tolist(), **SAME)
    assert found.observed == pytest.approx(np.quantile(every, at).tolist(), **SAME)


def test_noise_is_rejected_as_often_as_the_level_says():
    found = normality(gaussian((200, 1, 12, 12)))
    assert 0.01 < found.shapiro_rejected < 0.09
    assert 0.01 < found.ks_rejected < 0.09


def test_what_noise_is_not():
    assert normality(torch.zeros(2, 4, 8, 8)).shapiro_rejected == 1
    large = torch.rand(2, 4, 64, 64, generator=torch.Generator().manual_seed(0))  # above what Shapiro's test takes
    assert normality(large).shapiro_rejected == 1
    half = normality(gaussian((20, 4, 16, 16)) / 2)
    assert half.shapiro_rejected < 0.3  # it does not see the scale
    assert half.ks_rejected == 1


def test_the_divergence_is_torchs_own():
    x, noise = gaussian(ODD, 1) * 0.8 + 0.1, gaussian((20, *ODD[1:]), 2)
    fitted = [torch.distributions.Normal(v.double().mean(0), v.double().std(0)) for v in (noise, x)]
    wanted = torch.distributions.kl_divergence(*fitted).mean()
    assert diagonal_kl(x, noise) == pytest.approx(float(wanted), **SAME)
    assert diagonal_kl(x, x) == pytest.approx(0, abs=1e-12)
    few, many = (diagonal_kl(gaussian((n, 4, 8, 8), 1), gaussian((n, 4, 8, 8), 2)) for n in (50, 800))
    assert (few, many) == pytest.approx((2 / 50, 2 / 800), rel=0.2)
    assert diagonal_kl(torch.zeros(3, 1, 2, 2), gaussian((3, 1, 2, 2))) == math.inf


# Spectrum


@pytest.mark.parametrize("shape", [ODD, (2, 4, 16, 16), (1, 1, 1, 5), (70, 1, 4, 4)])
def test_power_is_numpys(shape):
    x = gaussian(shape).double()
    power = (np.abs(np.fft.fft2(x.numpy())) ** 2 / (shape[2] * shape[3])).mean((0, 1))
    radius = np.hypot(np.fft.fftfreq(shape[2])[:, None], np.fft.fftfreq(shape[3]))
    ring = np.round(radius * min(shape[2:])).astype(int)
    found = spectrum(x)
    numbers = [k for k in range(ring.max() + 1) if (ring == k).any()]
    assert found.power == pytest.approx([power[ring == k].mean() for k in numbers], **SAME)
    assert found.frequency == pytest.approx([radius[ring == k].mean() for k in numbers], **SAME)
    assert found.low == pytest.approx(power[radius <= 1 / 8].mean() / power.mean(), **SAME)


def test_autocorrelation_is_numpys():
    x = gaussian(ODD).double()
    found = spectrum(x)
    centred = (x - x.mean((2, 3), keepdim=True)).numpy()
    var = (centred**2).mean((2, 3))
    across = [((centred[..., k:] * centred[..., :-k]).mean((2, 3)) / var) for k in range(1, 7)]
    down = [((centred[:, :, k:] * centred[:, :, :-k]).mean((2, 3)) / var) for k in range(1, 9)]
    assert found.horizontal == pytest.approx([r.mean() for r in across], **SAME)
    assert found.vertical == pytest.approx([r.mean() for r in down], **SAME)
    wanted = np.abs(np.concatenate([across[0], down[0]], 1).mean(1)).mean()
    assert found.neighbours == pytest.approx(wanted, **SAME)


def test_noise_is_white_and_a_blurred_latent_is_not():
    white = spectrum(gaussian((50, 4, 32, 32)))
    assert white.low == pytest.approx(1, abs=0.02)
    assert white.power[:17] == pytest.approx([1] * 17, abs=0.15)  # corners are one frequency each
    assert max(map(abs, (*white.horizontal, *white.vertical))) < 0.02
    x = gaussian((50, 4, 32, 32))
    blurred = spectrum(x + x.roll(1, 3))
    assert blurred.horizontal[0] == pytest.approx(0.5, abs=0.02)
    assert abs(blurred.vertical[0]) < 0.02
    assert blurred.low > 1.5


def test_a_latent_of_one_value_has_no_autocorrelation():
    x = gaussian((2, 1, 8, 8))
    x[0] = 1
    assert spectrum(x).horizontal == pytest.approx(spectrum(x[1:]).horizontal, **SAME)


# Plain areas


def picture():
    """Half plain, half not."""
    x = gaussian((2, 3, 8, 8))
    x[..., :4] = 0.5
    return x


def test_the_mask_is_where_differences_are_small():
    x = picture()
    mask = plain_mask(x)
    wanted = torch.zeros(2, 8, 8, dtype=torch.bool)
    for b, i, j in np.ndindex(2, 8, 8):
        down, right = min(i, 6), min(j, 6)
        d = (x[b, :, down + 1, j] - x[b, :, down, j]).abs() + (x[b, :, i, right + 1] - x[b, :, i, right]).abs()
        wanted[b, i, j] = bool((d / 2 < 0.025).all())
    assert torch.equal(mask, wanted)
    assert mask[:, :, :3].all()
    assert not mask[:, :, 4:].any()
    one = picture()
    one[0, 1, 2, 1] += 1  # one channel is enough
    assert not plain_mask(one)[0, 2, 1]


def test_inside_and_outside_are_numpys():
    x, noise = gaussian((2, 4, 8, 8), 1).double(), gaussian((2, 4, 8, 8), 2).double()
    mask = plain_mask(picture())
    found = plain_areas(x, mask, noise)
    everywhere = mask[:, None].expand_as(x)
    for name, where in (("inside", everywhere), ("outside", ~everywhere)):
        assert getattr(found, f"std_{name}") == pytest.approx(x[where].numpy().std(), **SAME)
        assert getattr(found, f"error_{name}") == pytest.approx(float((x - noise).abs()[where].mean()), **SAME)
        windows = [
            np.var(x[b, c, i - 1 : i + 2, j - 1 : j + 2].numpy(), ddof=1)
            for b, c, i, j in np.ndindex(2, 4, 8, 8)
            if where[b, c, i, j] and 0 < i < 7 and 0 < j < 7
        ]
        assert getattr(found, f"variance_{name}") == pytest.approx(np.mean(windows), **SAME)
    assert found.share == pytest.approx(float(mask.double().mean()), **SAME)


def test_a_mask_of_pixels_counts_a_cell_where_all_are_plain():
    mask = torch.zeros(1, 12, 12, dtype=torch.bool)
    mask[:, :6, :5] = True
    found = plain_areas(gaussian((1, 4, 4, 4)), mask)
    assert found.share == 2 / 16
    assert math.isnan(found.error_inside)


# Geometry and the way between


def test_angles_and_distances_are_numpys():
    i, e, x = (gaussian(ODD, seed).double() for seed in (1, 2, 3))
    found = geometry(i, e, x)
    corners = [v.flatten(1).numpy() for v in (i, e, x)]

    def angle(at, a, b):
        a, b = corners[a] - corners[at], corners[b] - corners[at]
        cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        return np.degrees(np.arccos(cosine)).mean()

    def apart(a, b):
        return np.linalg.norm(corners[a] - corners[b], axis=1).mean() / math.sqrt(3 * 11 * 7)

    angles = found.at_image, found.at_noise, found.at_latent
    assert angles == pytest.approx([angle(0, 1, 2), angle(1, 0, 2), angle(2, 0, 1)], **SAME)
    assert sum(angles) == pytest.approx(180, abs=1e-9)
    distances = found.image_noise, found.image_latent, found.noise_latent
    assert distances == pytest.approx([apart(0, 1), apart(0, 2), apart(1, 2)], **SAME)
    assert found.noise_latent == pytest.approx(math.sqrt(2), abs=0.1)
    assert math.isnan(geometry(i, e, e).at_latent)


def test_the_share_of_steps_nearer_to_the_noise():
    e, i = gaussian((2, 1, 4, 4), 1), gaussian((2, 1, 4, 4), 2)
    path = torch.stack([torch.lerp(e, i, share) for share in (1.0, 0.75, 0.5, 0.25, 0.0)])
    assert geometry(i, e, torch.lerp(e, i, 0.8), path).nearer_noise == 1 / 4  # .25 is nearer, .5 and above are not
    assert geometry(i, e, i, path).nearer_noise == pytest.approx((1 + 0) / 4, abs=0.26)


def test_alignment():
    images = gaussian((6, 4, 8, 8), 1)
    x = (gaussian((6, 4, 8, 8), 2) + images) / math.sqrt(2)
    found = alignment(x, images)
    a, b = x.flatten(1).double().numpy(), images.flatten(1).double().numpy()
    wanted = [(u @ v) / np.linalg.norm(u) / np.linalg.norm(v) for u, v in zip(a, b, strict=True)]
    assert found.cosine == pytest.approx(np.mean(wanted), **SAME)
    others = [a[j] @ b[k] / np.linalg.norm(a[j]) / np.linalg.norm(b[k]) for j in range(6) for k in range(6) if j != k]
    assert found.cosine_others == pytest.approx(np.mean(others), **SAME)
    assert found.length == pytest.approx(np.linalg.norm(a, axis=1).mean() / 16, **SAME)
    assert math.isnan(alignment(x[:1], images[:1]).cosine_others)


@settings(max_examples=20)
@given(st.integers(0, 2**31), st.integers(2, 9))
def test_self_interpolation_stays_on_the_sphere(seed, points):
    """Ends are exact, and lengths on the way lie between theirs: straight lines would be shorter."""
    e, x = gaussian((2, 4, 8, 8), seed).double(), gaussian((2, 4, 8, 8), seed + 1).double()
    seen = []
    found = self_interpolation(e, x, lambda z: seen.append(z) or float(z.std()), points=points)
    assert found.shares == pytest.approx(np.linspace(0, 1, points).tolist())
    assert torch.allclose(seen[0], e, atol=1e-12)
    assert torch.allclose(seen[-1], x, atol=1e-12)
    assert all(0.9 < value < 1.1 for value in found.values)


def test_between_a_latent_and_itself_nothing_changes():
    e = gaussian((1, 1, 4, 4))
    assert self_interpolation(e, e, lambda z: float(z.std())).values == pytest.approx([float(e.std())] * 7, rel=1e-6)


# Beside, and all at once


@settings(max_examples=20)
@given(st.integers(1, 40), st.integers(1, 5), st.integers(0, 2**31))
def test_permuted_keeps_every_elements_values(n, side, seed):
    x = gaussian((n, 2, side, 3), seed)
    found = permuted(x, seed)
    assert torch.equal(found.sort(0).values, x.sort(0).values)
    assert torch.equal(found, permuted(x, seed))


def test_the_noise_beside_is_of_their_number_and_none_that_was_drawn_alike():
    x = gaussian((4, 1, 4, 4), 7)
    found = beside(lambda z: z, x, seed=7, permute=True)
    assert torch.equal(found.latents, x)
    assert found.noise.shape == x.shape
    assert torch.equal(found.noise, noise_beside(x, 7))
    assert not torch.equal(found.noise, x)


def test_a_report_of_noise_is_clean_and_one_of_traces_is_not():
    images = torch.nn.functional.interpolate(gaussian((150, 4, 4, 4), 1), size=16)  # plain but for edges
    noise = gaussian((150, 4, 16, 16), 2)
    clean = {row.figure: row for row in analyze(noise, images, noise).rows}
    assert clean["pairs beyond chance"].latents == 0
    assert clean["20 largest |r| of a patch"].latents == pytest.approx(
        clean["20 largest |r| of a patch"].noise, abs=0.03
    )
    assert clean["mean error inside"].latents == clean["distance to the noise"].latents == 0
    found = {row.figure: row for row in analyze(0.8 * noise + 0.6 * images, images, noise).rows}
    assert found["pairs beyond chance"].latents > 100
    assert found["pairs beyond chance"].permuted == 0
    assert found["cosine to the own image"].latents > 0.4
    assert abs(found["cosine to the own image"].permuted) < 0.05
    assert found["3 x 3 variance inside"].latents < 0.8 < found["3 x 3 variance inside"].noise
    assert found["power at low frequencies"].latents > 1.2


def test_a_mask_of_pixels_in_a_report():
    mask = torch.zeros(3, 16, 16, dtype=torch.bool)
    mask[:, :8] = True
    for images in (None, gaussian((3, 4, 8, 8), 1)):
        report = analyze(gaussian((3, 4, 8, 8)), images, mask=mask)
        assert report.found["areas"].latents.share == 0.5
    with pytest.raises(TypeError, match="mask must be a bool tensor"):
        analyze(gaussian((3, 4, 8, 8)), mask=mask.float())


def test_results_are_json():
    report = analyze(gaussian((3, 4, 8, 8)), gaussian((3, 4, 8, 8), 1))
    again = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert again["n"] == 3
    assert again["found"]["areas"]["latents"]["error_inside"] is None
    assert again["rows"][0]["subject"] == "correlation"


def test_one_latent_has_what_one_can_have():
    report = analyze(gaussian((1, 4, 8, 8)), gaussian((1, 4, 8, 8), 1))
    assert set(report.skipped) == {"correlation", "divergence"}
    assert "at least 3 latents, got 1" in report.skipped["correlation"]
    assert {"normality", "spectrum", "areas", "alignment"} == set(report.found)


# What cannot be used


GOOD = gaussian((4, 2, 8, 8))
EVERY = {
    "correlation": correlation,
    "normality": normality,
    "spectrum": spectrum,
    "plain_mask": plain_mask,
    "plain_areas": lambda x: plain_areas(x, plain_mask(GOOD)),
    "geometry": lambda x: geometry(GOOD, GOOD, x),
    "alignment": lambda x: alignment(x, GOOD),
    "diagonal_kl": lambda x: diagonal_kl(x, GOOD),
    "permuted": permuted,
    "beside": lambda x: beside(spectrum, x),
    "analyze": analyze,
    "self_interpolation": lambda x: self_interpolation(GOOD, x, lambda z: 0.0),
}


def holed(value):
    x = GOOD.clone()
    x[2, 0, 0, 0] = value
    return x


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (holed(math.nan), r"number 2 of 4 \(from 0\) has NaN or infinity"),
        (holed(math.inf), "number 2 of 4"),
        (GOOD[0], r"shape \(n, C, h, w\) with none of them 0, got \(2, 8, 8\)"),
        (GOOD[:0], r"none of them 0, got \(0, 2, 8, 8\)"),
        (GOOD.long(), "must be real floats, got torch.int64"),
        (GOOD.to(torch.complex64), "must be real floats, got torch.complex64"),
        (GOOD.to("meta"), "meta device and have no values"),
    ],
    ids=["nan", "inf", "3-D", "empty", "int", "complex", "meta"],
)
def test_latents_that_cannot_be_used(name, x, message):
    with pytest.raises(ValueError, match=message):
        EVERY[name](x)


@pytest.mark.parametrize("name", EVERY)
def test_no_tensor(name):
    with pytest.raises(TypeError, match=r"must be a torch tensor \(n, C, h, w\), got list"):
        EVERY[name]([1, 2])


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (lambda: correlation(GOOD[:2]), ValueError, "at least 3 latents, got 2"),
        (lambda: correlation(GOOD[:, :1, :1, :1]), ValueError, "patches of two elements"),
        (lambda: correlation(GOOD, patch=0), ValueError, "patch must be an integer of at least 1, got 0"),
        (lambda: correlation(GOOD, top=True), ValueError, "top must be an integer of at least 1, got True"),
        (lambda: PatchCorrelation().result(), ValueError, "got 0"),
        (lambda: normality(GOOD[:, :1, :1, :2]), ValueError, "at least 3 elements"),
        (lambda: diagonal_kl(GOOD[:1], GOOD), ValueError, "at least 2 latents, got 1"),
        (lambda: diagonal_kl(GOOD, GOOD[:, :1]), ValueError, "must have the shape"),
        (lambda: plain_mask(GOOD[..., :1]), ValueError, "at least 2 pixels a side"),
        (lambda: plain_mask(GOOD, -1), ValueError, "threshold must be a positive number, got -1"),
        (lambda: plain_areas(GOOD[..., :2], plain_mask(GOOD)), ValueError, "at least 3 cells a side"),
        (lambda: plain_areas(GOOD, plain_mask(GOOD)[:3]), ValueError, r"mask must be \(4, H, W\) with multiples of 8"),
        (lambda: plain_areas(GOOD, GOOD), TypeError, "mask must be a bool tensor"),
        (lambda: geometry(GOOD, GOOD[:1], GOOD), ValueError, "noise must have the shape of the latents"),
        (lambda: geometry(GOOD, GOOD, GOOD, GOOD), ValueError, "trajectory must be"),
        (lambda: geometry(GOOD, GOOD, GOOD, holed(math.nan).expand(3, 4, 2, 8, 8)), ValueError, "must be finite"),
        (lambda: analyze(GOOD, images=GOOD[:2]), ValueError, "images must have the shape of the latents"),
        (lambda: self_interpolation(GOOD, GOOD, len, points=1), ValueError, "points must be an integer of at least 2"),
    ],
)
def test_what_does_not_fit(function, error, message):
    with pytest.raises(error, match=message):
        function()


def test_batches_of_another_shape():
    sums = PatchCorrelation()
    sums.add(GOOD)
    with pytest.raises(ValueError, match=r"shape \(n, \*\(2, 8, 8\)\) of those before, got \(4, 2, 8, 4\)"):
        sums.add(GOOD[..., :4])
    assert sums.n == 4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_real_dtype_and_what_is_set_around(dtype):
    x = GOOD.to(dtype).requires_grad_()
    with torch.device("meta"), torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        report = analyze(x, GOOD, GOOD)
    assert report == analyze(x.detach().clone(), GOOD, GOOD)


def test_every_public_name_is_there():
    assert all(hasattr(analysis, name) for name in analysis.__all__)
