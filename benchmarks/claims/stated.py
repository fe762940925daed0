"""The claims of both papers: what measures each, and what its figures must be to confirm it.

Verdicts are computed, a model at a time. The models are the bundled ones, whose images have 64 and 32 pixels: they show
whether an effect is there, not how large it is elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.claims.subjects import started

Rows = Sequence[Mapping[str, Any]]
Values = Mapping[str, float]
NOISE, FRESH, START = "the noise", "fresh noise", started(2)
DIFFUSION, ALL = ("pixel", "latent"), ("pixel", "latent", "flow")
EARLY = 0.1
"""The first steps of an inversion, where the paper finds the error."""


@dataclass(frozen=True)
class Claim:
    """One claim.

    Args:
        says: what it says, in our words.
        study: whose rows speak of it, `python -m benchmarks.claims STUDY`.
        figure: what its values are.
        values: of the rows of one model, by name; None where nothing here can say it.
        holds: whether values confirm it.
        models: those it is asked of.
    """

    says: str
    study: str
    figure: str = ""
    values: Callable[[Rows], Values] | None = None
    holds: Callable[[Values], bool] = lambda values: False
    models: tuple[str, ...] = ALL


def one(rows: Rows, **wanted: Any) -> Mapping[str, Any]:
    """The row with these entries.

    Raises:
        LookupError: there is none; it names what was looked for.
    """
    for row in rows:
        if all(row.get(name) == value for name, value in wanted.items()):
            return row
    raise LookupError(f"no row of {wanted}")


def by_method(field: str, *methods: str, **wanted: Any) -> Callable[[Rows], Values]:
    """A field of several methods' rows."""
    return lambda rows: {method: one(rows, method=method, **wanted)[field] for method in methods}


def fields(method: str, **named: str) -> Callable[[Rows], Values]:
    """Several fields of one method's row."""
    return lambda rows: {name.replace("_", " "): one(rows, method=method)[field] for name, field in named.items()}


def inside(rows: Rows) -> Values:
    """Deviation where plain over that elsewhere."""
    found = {method: one(rows, method=method) for method in ("ddim", NOISE, START)}
    return {method: row["std_inside"] / row["std_outside"] for method, row in found.items()}


def early(inner: str, outer: str) -> Callable[[Rows], Values]:
    """A quotient of two fields, in the first tenth of the steps and later."""

    def values(rows: Rows) -> Values:
        steps = [row for row in rows if row.get("what") == "step"]
        count = max(1, round(EARLY * len(steps)))
        parts = {"first tenth of steps": steps[:count], "later": steps[count:]}
        return {name: sum(s[inner] for s in part) / sum(s[outer] for s in part) for name, part in parts.items()}

    return values


def swapped(rows: Rows) -> Values:
    """Distance to the noise with the first steps replaced by what was recorded, by how many."""
    return {f"{row['k']} swapped": row["to_noise"] for row in rows if row.get("what") == "swapped"}


def at_shares(field: str) -> Callable[[Rows], Values]:
    """A field of DDIM and all forward starts, by K."""

    def values(rows: Rows) -> Values:
        found = {"K = 0": one(rows, method="ddim")[field]}
        starts = [row for row in rows if row["method"].startswith("forward start")]
        return found | {row["method"].split(", ")[1]: row[field] for row in starts}

    return values


def first(values: Values) -> float:
    """The value named first."""
    return next(iter(values.values()))


def largest(values: Values) -> bool:
    """The first is above all others."""
    return first(values) > max(list(values.values())[1:])


def smallest(values: Values) -> bool:
    """The first is below all others."""
    return first(values) < min(list(values.values())[1:])


TABA = (
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

FULL = "guidance 1, emoji64, N = 50, float32, full"
EASYINV = (
    Claim(
        "costs what DDIM inversion costs",
        "easyinv",
        "evaluations a step",
        by_method("evaluations", "EasyInv", "DDIM", what=FULL),
        lambda v: v["EasyInv"] == v["DDIM"],
        ("latent",),
    ),
    Claim(
        "a third of what iterative methods cost",
        "easyinv",
        "evaluations a step",
        by_method("evaluations", "EasyInv", "ReNoise", "fixed point 3", what=FULL),
        lambda v: 2.5 * v["EasyInv"] < min(v["ReNoise"], v["fixed point 3"]),
        ("latent",),
    ),
    Claim(
        "reconstructs as well as DDIM inversion or better",
        "easyinv",
        "median image PSNR in dB to what the autoencoder makes",
        by_method("psnr_to_vae", "EasyInv", "DDIM", what=FULL),
        largest,
        ("latent",),
    ),
    Claim(
        "reconstructs about as well as ReNoise",
        "easyinv",
        "median image PSNR in dB to what the autoencoder makes",
        by_method("psnr_to_vae", "EasyInv", "ReNoise", "ReNoise, plain", what=FULL),
        lambda v: v["EasyInv"] > v["ReNoise"] - 1,
        ("latent",),
    ),
    Claim(
        "gains most on models that are imprecise",
        "easyinv",
        "on a checkpoint of 420 training steps, dB",
        by_method("psnr_to_vae", "EasyInv", "DDIM", what="early, emoji64-early, N = 50, float32, full"),
        largest,
        ("latent",),
    ),
    Claim(
        "loses nothing in half precision",
        "easyinv",
        "dB in float16, N = 10",
        by_method("psnr_to_vae", "EasyInv", "DDIM", what="half precision, emoji64, N = 10, float16, bundled 4"),
        largest,
        ("latent",),
    ),
    Claim(
        "rebuilds white images, which ReNoise turns black",
        "easyinv",
        "dB of a white image in float16",
        by_method("psnr_to_vae", "easyinv", "renoise", "ddim", what="white, emoji64, N = 10, float16, white"),
        largest,
        ("latent",),
    ),
    Claim(
        "half way back its latents are nearer to those half way there",
        "easyinv",
        "relative error at step N / 2",
        by_method("midpoint", "EasyInv", "DDIM", what=FULL),
        smallest,
        ("latent",),
    ),
    Claim(
        "makes MasaCtrl's edits better",
        "easyinv",
        "share of 50 edits whose nearest emoji is the target",
        by_method("target", "masactrl, easyinv", "masactrl, ddim", what="edits"),
        largest,
        ("latent",),
    ),
    Claim("LPIPS .321, SSIM .646 on COCO with SD 1.4, five seconds on an RTX 3090", "weights"),
)
PAPERS = {
    "There and Back Again": ("2410.23530", TABA),
    "EasyInv": ("2408.05159", EASYINV),
}
