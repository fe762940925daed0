"""There and Back Again's claims (arXiv 2410.23530)."""

from __future__ import annotations

from benchmarks.claims.stated import (
    DIFFUSION,
    FRESH,
    NOISE,
    START,
    Claim,
    at_shares,
    by_method,
    early,
    fields,
    inside,
    largest,
    smallest,
    swapped,
)

CLAIMS = (
    Claim(
        "DDIM's latents are correlated where noise is not",
        "latents",
        "mean of the 20 largest r of a patch",
        by_method("top", "ddim", NOISE, FRESH),
        largest,
    ),
    Claim(
        "they are not normal",
        "latents",
        "share rejected by Shapiro-Wilk",
        by_method("shapiro", "ddim", NOISE, FRESH),
        largest,
    ),
    Claim(
        "they are less diverse where the image is plain",
        "latents",
        "standard deviation in plain areas over that elsewhere",
        inside,
        lambda v: v["ddim"] < v[NOISE],
    ),
    Claim(
        "in the first inversion steps the error of the predicted noise is larger in plain areas than elsewhere",
        "steps",
        "error inside over outside",
        early("error_inside", "error_outside"),
        lambda v: v["first tenth of steps"] > max(1.0, v["later"]),
        DIFFUSION,
    ),
    Claim(
        "there the predicted noise is less diverse than what the image was drawn with",
        "steps",
        "its deviation in plain areas over that of what was right",
        early("std_inside", "true_std_inside"),
        lambda v: v["first tenth of steps"] < 1,
        DIFFUSION,
    ),
    Claim(
        "the first steps make the error: with the first tenth right most of it is gone",
        "steps",
        "distance to the noise",
        swapped,
        lambda v: v["2 swapped"] < v["0 swapped"] / 2,
    ),
    Claim(
        "latents lie between image and noise",
        "latents",
        "distances, and the angle at the latent in degrees",
        fields(
            "ddim", image_to_noise="image_noise", image_to_latent="to_image", noise_to_latent="to_noise", angle="angle"
        ),
        lambda v: max(v["image to latent"], v["noise to latent"]) < v["image to noise"] and v["angle"] > 90,
    ),
    Claim(
        "images drawn between latents are worse than those between noises",
        "between",
        "Frechet distance half way",
        by_method("frechet", "ddim", NOISE, what="between", share=1 / 2),
        largest,
        ("pixel",),
    ),
    Claim(
        "edits of latents are less diverse than those of noise",
        "edits",
        "distance between edits of one image",
        by_method("diversity", "ddim", NOISE),
        smallest,
        ("latent",),
    ),
    Claim(
        "edits of latents keep the image's plain areas",
        "edits",
        "how far edits go in plain areas",
        by_method("moved_inside", "ddim", NOISE),
        smallest,
        ("latent",),
    ),
    Claim(
        "earlier inversion methods do not fully mend it",
        "latents",
        "mean of the 20 largest r of a patch",
        by_method("top", FRESH, "ddim", "renoise", "fixed_point", "easyinv"),
        smallest,
        ("latent",),
    ),
    Claim(
        "forward diffusion in place of the first steps (K = 2, of 50 there, of 20 here) decorrelates the latents",
        "latents",
        "mean of the 20 largest r of a patch",
        by_method("top", START, "ddim", FRESH),
        lambda v: v[START] - v[FRESH] < 0.1 * (v["ddim"] - v[FRESH]),
    ),
    Claim(
        "and restores their spread in plain areas",
        "latents",
        "standard deviation in plain areas over that elsewhere",
        inside,
        lambda v: abs(v[START] - v[NOISE]) < abs(v["ddim"] - v[NOISE]) / 2,
    ),
    Claim(
        "at a small cost to the reconstruction",
        "latents",
        "median latent PSNR in dB",
        by_method("latent_psnr", "ddim", START),
        lambda v: v["ddim"] - v[START] < 3,
    ),
    Claim(
        "images drawn between its latents are better than between DDIM's",
        "between",
        "Frechet distance half way",
        by_method("frechet", START, "ddim", what="between", share=1 / 2),
        smallest,
        ("pixel",),
    ),
    Claim(
        "edits of its latents are more diverse than of DDIM's",
        "edits",
        "distance between edits of one image",
        by_method("diversity", START, "ddim"),
        largest,
        ("latent",),
    ),
    Claim(
        "to be checked next: other shares of steps, 0 to 100 %; from K = 2 on no more correlated than fresh noise",
        "latents",
        "mean of the 20 largest r of a patch",
        at_shares("top"),
        lambda v: (
            max(x for name, x in v.items() if name not in ("K = 0", "K = 1")) - min(v.values())
            < 0.1 * (v["K = 0"] - min(v.values()))
        ),
    ),
    Claim("images and noise are matched by the least distance early in training", "training"),
    Claim("FID, and edits judged by CLIP, on models of 256 px and more", "weights"),
)
