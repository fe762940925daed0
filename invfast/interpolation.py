"""Between two inversions: lambda from 0, the first, to 1, the second, and what the sampler makes of each.

    x(lambda) = w_a a + w_b b,   w_a = sin((1 - lambda) omega) / sin omega,   w_b = sin(lambda omega) / sin omega

with omega the angle between a and b, each image's elements one vector: slerp (Shoemake, SIGGRAPH 1985), for noise by
White, arXiv 1609.04468. A straight line would leave the sphere that noise lies on: halfway between independent noises
its deviation is .71. What else a method keeps goes as `WAYS` says; texts go straight, as embeddings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch

from invfast.denoiser import MASK, Condition
from invfast.inversion import Inversion
from invfast.methods.base import State
from invfast.reconstruction import Reconstruction
from invfast.returning import reconstruct

WITH, ARC, LINE = "with the latents", "on an arc of its own", "straight"
WAYS = {
    "partner": WITH,  # EDICT's pair: with weights of its own it would be no state that the sampler comes by
    "previous": WITH,  # BDIA's latent before x_T
    "slope": WITH,  # O-BELM's noise from there to x_T
    "noise": ARC,
    "maps": ARC,  # each step's by itself: independent noises
    "path": ARC,  # each node's
    "origin": LINE,  # an image, x_0
    "embeds": LINE,  # texts
}
"""How each tensor of a state goes, by name."""
SAME = 1e-7
"""Radians; below them arc and line are one, to float64's rounding."""
OPPOSITE = 1e-6
"""Radians from pi; from there on the shortest arc is any."""


def interpolate(pipe: Any, a: Inversion, b: Inversion, n: int = 7, **settings: Any) -> Reconstruction | tuple[Any]:
    """Pictures on the way from one inversion to another: slerp of the noise, prompts blended, one batch.

    The first and the last are the reconstructions of a and b: states and conditions are theirs, bit for bit; only the
    network may round otherwise in a batch of another size. Of methods that keep more than the noise the full state goes
    along, see `WAYS`. Text embeddings, pooled ones and control images go straight from a's to b's. `Direct` returns to
    the images themselves, and so only fades from one into the other.

    Args:
        pipe: the pipeline both were made with; left untouched.
        a: where it begins: an inversion of one image.
        b: where it ends: likewise, of the same shape, schedule, method, node and guidance, on the same device.
        n: pictures, at least 2; lambda is 0, 1 / (n - 1), ..., 1.
        settings: of `reconstruct`, for all pictures (guidance_scale, runtime, dtype, output_type, ...); what is one an
            image (prompt_embeds, control_image, ...) is one for both, or a's and b's.

    Returns:
        What `reconstruct` returns, of n images.

    Raises:
        TypeError: a or b is no Inversion, or n no integer.
        ValueError: they differ in more than image and text, are of several images or not finite, or nothing lies
            between them: opposite noises, texts of different lengths under a mask, different classes. Otherwise as
            `reconstruct`.
    """
    _check(a, b, n)
    lambdas = torch.linspace(0, 1, int(n), dtype=torch.float64)
    both = Inversion.concatenate([a, b])
    return reconstruct(pipe, Between(**vars(both), lambdas=lambdas), **settings)


def slerp(a: torch.Tensor, b: torch.Tensor, lambdas: torch.Tensor | Sequence[float]) -> torch.Tensor:
    """Points on the arc between two vectors, the elements of a tensor each.

    Args:
        a: floats.
        b: of their shape and dtype.
        lambdas: (n,), 0 for a and 1 for b, where it is these bit for bit.

    Returns:
        (n, ...) of their dtype, on their device; computed in float64 on the CPU.

    Raises:
        ValueError: their shapes or dtypes differ, or they point opposite ways.
    """
    if a.shape != b.shape or a.dtype != b.dtype:
        raise ValueError(f"slerp needs two of a kind, got {a.dtype} {tuple(a.shape)} and {b.dtype} {tuple(b.shape)}")
    ends = torch.stack([a, b])
    return _sum(ends, _arc(ends, torch.as_tensor(lambdas, dtype=torch.float64)))


@dataclass(eq=False, repr=False)
class Between(Inversion):
    """Two images, from which `reconstruct` makes one at each lambda.

    Args:
        lambdas: (n,) float64 on the CPU.
    """

    lambdas: torch.Tensor = None

    def _each(self, state: State, condition: Condition) -> tuple[State, Condition]:
        positive, negative = condition
        blended = _between(positive, self.lambdas), negative and _between(negative, self.lambdas)
        return _states(state, self.lambdas), blended


def _check(a: Any, b: Any, n: Any) -> None:
    for name, each in (("a", a), ("b", b)):
        if not isinstance(each, Inversion):
            raise TypeError(f"{name} must be what invert() returns, got {type(each).__name__}")
        if len(each) != 1:
            raise ValueError(f"{name} is an inversion of {len(each)} images; pass one of them, as in {name}[0]")
        for what, value in {"latents": each.latents, **each.state}.items():
            if not bool(value.isfinite().all()):
                raise ValueError(f"{what} of {name} are not finite; nothing lies between them and others")
            if what not in ("latents", *WAYS):
                raise ValueError(
                    f"{type(each.method).__name__} keeps {what!r} in its state, and how that goes from one image to "
                    f"another is not known; expected some of {', '.join(WAYS)}"
                )
    if not isinstance(n, Integral) or isinstance(n, bool):
        raise TypeError(f"n must be an integer, how many pictures, got {n!r}")
    if n < 2:
        raise ValueError(f"n must be at least 2, the reconstructions of a and b, got {n}")


def _states(ends: State, lambdas: torch.Tensor) -> State:
    """State tensors (2, ...) at every lambda, (n, ...)."""
    weights = _arc(ends["latents"], lambdas)
    straight = torch.stack([1 - lambdas, lambdas], -1)
    found = {}
    for name, value in ends.items():
        way = WAYS.get(name, WITH)
        if way == ARC and value.ndim == 5:  # several an image
            found[name] = torch.stack([_sum(x, _arc(x, lambdas)) for x in value.unbind(1)], 1)
        else:
            own = _arc(value, lambdas) if way == ARC else straight if way == LINE else weights
            found[name] = _sum(value, own)
    return found


def _between(branch: Mapping[str, torch.Tensor], lambdas: torch.Tensor) -> dict[str, torch.Tensor]:
    """What the network is told, (2, ...) by name, at every lambda, (n, ...)."""
    straight, found = torch.stack([1 - lambdas, lambdas], -1), {}
    for name, value in branch.items():
        if torch.equal(value[0], value[1]):
            found[name] = value[:1].expand(len(lambdas), *value.shape[1:])
        elif name == MASK:
            words = value.sum(1).tolist()
            raise ValueError(
                f"the texts of a and b have {words[0]} and {words[1]} tokens, and between texts of different lengths "
                "there is none; invert both with one prompt, or with prompts of one length"
            )
        elif not value.is_floating_point():
            raise ValueError(
                f"a and b differ in {name}, {value[0].tolist()} and {value[1].tolist()}, and there is nothing between "
                "these; invert both alike"
            )
        else:
            found[name] = _sum(value, straight)
    return found


def _arc(ends: torch.Tensor, lambdas: torch.Tensor) -> torch.Tensor:
    """Weights (n, 2) of two vectors (2, ...), float64."""
    u, v = (end / (end.norm() or 1) for end in ends.detach().to("cpu", torch.float64).flatten(1))
    # By arc tangent: the arc cosine of nearly equal vectors has half the digits (Kahan).
    angle = 2 * math.atan2(float((u - v).norm()), float((u + v).norm()))
    if math.pi - angle < OPPOSITE:
        raise ValueError("the noises of a and b point opposite ways, and no arc between them is the shortest")
    if angle < SAME or not (u.any() and v.any()):
        return torch.stack([1 - lambdas, lambdas], -1)
    return torch.stack([(1 - lambdas) * angle, lambdas * angle], -1).sin() / math.sin(angle)


def _sum(ends: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted sums (n, ...) of two tensors (2, ...), summed in float64; between equal ones nothing is rounded."""
    a, b = ends.detach().to("cpu", torch.float64)
    equal = torch.equal(a, b)
    each = [((wa + wb) * a if equal else wa * a + wb * b).to(ends.dtype) for wa, wb in weights.tolist()]
    return torch.stack(each).to(ends.device)
