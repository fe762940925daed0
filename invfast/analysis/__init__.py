"""Whether latents are noise: what is left of the image in them, beside the same figures of true noise.

The protocol is There and Back Again's (Staniszewski, Kucinski and Deja, arXiv 2410.23530). All of it is computed in
float64 on the CPU. scipy and matplotlib come with `pip install "invfast[analysis]"`.
"""

from invfast.analysis.areas import PlainAreas, plain_areas, plain_mask
from invfast.analysis.base import Beside, beside, gaussian, permuted
from invfast.analysis.between import SelfInterpolation, self_interpolation
from invfast.analysis.correlation import Correlation, PatchCorrelation, correlation
from invfast.analysis.geometry import Alignment, Geometry, alignment, geometry
from invfast.analysis.normality import Normality, diagonal_kl, normality
from invfast.analysis.recording import Recording, record
from invfast.analysis.report import Report, Row, analyze
from invfast.analysis.spectrum import Spectrum, spectrum
from invfast.analysis.swap import Swap, swap, swap_up

__all__ = [
    "Alignment",
    "Beside",
    "Correlation",
    "Geometry",
    "Normality",
    "PatchCorrelation",
    "PlainAreas",
    "Recording",
    "Report",
    "Row",
    "SelfInterpolation",
    "Spectrum",
    "Swap",
    "alignment",
    "analyze",
    "beside",
    "correlation",
    "diagonal_kl",
    "gaussian",
    "geometry",
    "normality",
    "permuted",
    "plain_areas",
    "plain_mask",
    "record",
    "self_interpolation",
    "spectrum",
    "swap",
    "swap_up",
]
