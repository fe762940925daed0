"""EasyInv's claims, from committed rows: those of `make accuracy` and of `python -m benchmarks.edits`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from benchmarks import rows as committed
from benchmarks.claims.stated import Claim, by_method, largest, smallest

FIGURES = ("evaluations", "latent_psnr", "psnr_to_vae", "midpoint")


def rows(_: object = None) -> Iterator[dict[str, Any]]:
    """A row a method of a group: all images at N = 50, an early checkpoint, half precision, a white image."""
    for row in _read("accuracy"):
        case = row.get("case", {})
        if "figures" not in row or case.get("group") not in ("guidance 1", "early", "half precision", "white"):
            continue
        figures = next(iter(row["figures"].values()))
        what = f"{case['group']}, {case['model']}, N = {case['steps']}, {case['dtype']}, {case['images']}"
        yield {"what": what, "method": case["name"], **{name: figures[name] for name in FIGURES if name in figures}}
    for row in _read("edits"):
        yield {"what": "edits", "method": f"{row['editor']}, {row['inversion']}", "target": row["target"]}


def _read(name: str) -> list[dict[str, Any]]:
    path = committed.RESULTS / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


FULL = "guidance 1, emoji64, N = 50, float32, full"
CLAIMS = (
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
