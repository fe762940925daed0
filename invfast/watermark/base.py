"""What all schemes share: a key with a secret, what it draws from it, and what it says of latents."""

from __future__ import annotations

import hashlib
import secrets
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, ClassVar, Self

import torch
from diffusers.utils.torch_utils import randn_tensor

from invfast import arguments, plain
from invfast.analysis.base import Result, checked

SHORTEST = 16
"""Bytes of a secret at least."""

Generator = torch.Generator | list[torch.Generator] | None


@dataclass(frozen=True, repr=False)
class Score(Result):
    """What a key says of one image's latents.

    Args:
        kind: of the key.
        key: its number among those that were asked for, the surest one's.
        statistic: what one key's images are ranked by, the higher the surer: of rings the mean distance |y - k|,
            negative; of Gaussian Shading the share of elements whose sign is the key's. Between keys p is comparable,
            distances are not: a key of little power is near to everything.
        p_value: how often latents that know nothing of the key would look as sure; corrected for the number of keys.
        bits: the message as it was read, zeros and ones; "" where the key has none.
        bit_accuracy: the share of them that are the key's; None where it has none.
    """

    kind: str
    key: int
    statistic: float
    p_value: float
    bits: str = ""
    bit_accuracy: float | None = None


@dataclass(frozen=True)
class Key(ABC):
    """A watermark for latents of one shape.

    Args:
        shape: of the latents, (C, h, w).
        secret: what pattern and stream are drawn from, at least 16 bytes in hexadecimal. Who has it can find the
            watermark, forge it and take it out.

    Raises:
        ValueError: settings that do not fit each other or the shape; says what was expected.
    """

    shape: tuple[int, int, int]
    secret: str = field(repr=False)

    kind: ClassVar[str]
    """Its name in files and on the command line."""

    __repr__ = plain.line

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", integers("shape", self.shape, 3, 1))  # a file has a list
        _bytes("secret", self.secret, SHORTEST)

    @classmethod
    @abstractmethod
    def new(cls, shape: Sequence[int]) -> Self:
        """A key with a new secret, and what is not said as the paper has it, scaled to the shape."""

    @abstractmethod
    def mark(self, noise: torch.Tensor) -> torch.Tensor:
        """Standard normal noise (n, C, h, w), float64 on the CPU, with the watermark in it."""

    @abstractmethod
    def read(self, latents: torch.Tensor) -> list[Score]:
        """A score for each of the latents (n, C, h, w), float64 on the CPU."""

    def embed(self, n: int = 1, generator: Generator = None) -> torch.Tensor:
        """Latents x_T to sample from, as `latents=` of a diffusers pipeline takes them.

        Args:
            n: how many; each has noise of its own beside the watermark.
            generator: of the noise; a list has one an image. None takes torch's own.

        Returns:
            (n, C, h, w) float32 on the CPU.

        Raises:
            TypeError, ValueError: n is no positive integer, or the generators are none, or not n.
        """
        arguments.check_generator(generator)
        shape = (integer("n", n, 1), *self.shape)
        noise = randn_tensor(shape, generator=generator, device=torch.device("cpu"), dtype=torch.float64)
        return self.mark(noise).float()

    def checked(self, latents: Any) -> torch.Tensor:
        """Latents of the key's shape, float64 on the CPU.

        Raises:
            TypeError, ValueError: no finite latents, or of another shape.
        """
        x = checked("latents", latents)
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(
                f"the key is for latents {self.shape}, these are {tuple(x.shape[1:])}; take the model and the image "
                "size it was made for, or make a key for this shape"
            )
        return x.double()

    def stream(self, label: str, length: int) -> bytes:
        """Bytes that nobody can tell from random ones who does not know the secret: SHAKE-256 of label and secret.

        What is drawn this way is the same on every machine and with every version of torch.
        """
        return hashlib.shake_256(f"invfast|{label}|".encode() + bytes.fromhex(self.secret)).digest(length)

    def normal(self, label: str, shape: Sequence[int]) -> torch.Tensor:
        """Standard normal numbers drawn from the secret, float64."""
        count = torch.Size(shape).numel()
        words = torch.frombuffer(bytearray(self.stream(label, 8 * count)), dtype=torch.int64)
        uniform = ((words >> 11 & (1 << 53) - 1).double() + 0.5) * 2.0**-53
        return torch.special.ndtri(uniform.clamp(max=1 - 2.0**-53)).reshape(*shape)


def new_secret() -> str:
    """32 random bytes in hexadecimal, from the system's own source."""
    return secrets.token_hex(32)


def integers(name: str, value: Any, count: int, least: int) -> tuple[int, ...]:
    """So many integers of at least `least`.

    Raises:
        ValueError: anything else.
    """
    given = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else []
    fine = all(isinstance(each, Integral) and not isinstance(each, bool) and each >= least for each in given)
    if len(given) != count or not fine:
        raise ValueError(f"{name} must be {count} integers of at least {least}, got {value!r}")
    return tuple(int(each) for each in given)


def integer(name: str, value: Any, least: int) -> int:
    """An integer of at least `least`.

    Raises:
        ValueError: anything else.
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
    return int(value)


def bits_of(name: str, text: Any, count: int) -> str:
    """A message of so many bits, checked.

    Raises:
        ValueError: not a text of zeros and ones, or of another length.
    """
    if not isinstance(text, str) or set(text) - {"0", "1"} or len(text) != count:
        got = f"{len(text)} characters" if isinstance(text, str) and len(text) != count else repr(text)[:80]
        raise ValueError(f"{name} must be {count} zeros and ones for this shape, got {got}")
    return text


def random_bits(count: int) -> str:
    """A message drawn from the system's own source."""
    return f"{secrets.randbits(count):0{count}b}" if count else ""


def as_tensor(bits: str) -> torch.Tensor:
    """(k,) float64, 1 for a one and -1 for a zero."""
    return torch.tensor([1.0 if bit == "1" else -1.0 for bit in bits], dtype=torch.float64)


def as_text(signs: torch.Tensor) -> str:
    """Zeros and ones of (k,) numbers, a one where it is above 0."""
    return "".join("1" if each > 0 else "0" for each in signs.tolist())


def scipy_stats() -> Any:
    """scipy.stats, taken along only when a p-value is asked for."""
    try:
        from scipy import stats
    except ImportError as error:
        raise ImportError(f'watermark needs scipy: {error} (pip install "invfast[watermark]")') from error
    return stats


def _bytes(name: str, text: Any, least: int) -> bytes:
    try:
        found = bytes.fromhex(text)
    except (TypeError, ValueError):
        found = b""
    if len(found) < least:
        raise ValueError(f"{name} must be at least {least} bytes in hexadecimal; take new_secret(), or Key.new")
    return found
