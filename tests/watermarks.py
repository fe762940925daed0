"""Keys that are the same in every run."""

import math

from invfast.watermark import GaussianShading, RingID, TreeRing

A, B = "a1" * 32, "b2" * 32


def key(kind, shape=(4, 16, 16), secret=A):
    """A key that is the same in every run."""
    if kind == "gaussian_shading":
        copies = (1, math.gcd(shape[1], 4), math.gcd(shape[2], 4))
        count = math.prod(shape) // math.prod(copies)
        return GaussianShading(shape, secret, f"{int(B * 32, 16):b}"[:count], copies, "07")
    if kind == "ring_id":
        message = "101101" if secret == A else "010110"  # rings alone are no secret
        return RingID(shape, secret, message, 7, 1, (shape[0] - 1,), (0,))
    return TreeRing(shape, secret, kind, 6, shape[0] - 1)


KEYS = ("ring", "rand", "zeros", "gaussian_shading", "ring_id")
