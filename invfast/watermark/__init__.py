"""Watermarks in x_T: drawn into the noise an image begins with, read from the noise that its inversion finds.

Tree-Ring (arXiv 2305.20030), Gaussian Shading (arXiv 2404.04956) and RingID (arXiv 2404.14055). A key is a frozen
dataclass and a file; `key.embed` makes latents, `sample` images of them on any pipeline, `detect` looks for the key in
images, `score` in latents that are there already. scipy comes with `pip install "invfast[watermark]"`.
"""

from invfast.watermark.base import Key, Score
from invfast.watermark.detecting import Detection, detect, score
from invfast.watermark.gaussian_shading import GaussianShading
from invfast.watermark.keys import KINDS, fingerprint_of, load_key, save_key
from invfast.watermark.ring_id import RingID
from invfast.watermark.sampling import sample, shape_of
from invfast.watermark.tree_ring import TreeRing

__all__ = [
    "KINDS",
    "Detection",
    "GaussianShading",
    "Key",
    "RingID",
    "Score",
    "TreeRing",
    "detect",
    "fingerprint_of",
    "load_key",
    "sample",
    "save_key",
    "score",
    "shape_of",
]
