"""One pipeline for the time of one call: what all families share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import torch

from invfast import runtimes
from invfast.adapters.calibration import calibration
from invfast.adapters.clone import private
from invfast.adapters.conditioned import EMBEDS, Conditioned, alike
from invfast.adapters.fused import fused
from invfast.adapters.precompute import PARTS, TIMES, Precomputed, TimeTable, reduced, refusals
from invfast.adapters.predictor import outside
from invfast.adapters.reading import Reading
from invfast.adapters.session import exclusive, session
from invfast.ambient import numerics
from invfast.store import beside
from invfast.warned import warn

DTYPES = {
    str(d).removeprefix("torch."): d for d in (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int8)
}

Condition = tuple[dict[str, torch.Tensor], dict[str, torch.Tensor] | None]
"""The network's static inputs by name, (B, ...) each, and the unconditional ones under guidance."""


@dataclass(frozen=True, eq=False)
class Prompts:
    """What the images show: texts, one an image, or embeddings (1 or B, tokens, width) in their place."""

    texts: list[str] | None = None
    negative: list[str] | None = None
    embeds: torch.Tensor | None = None
    negative_embeds: torch.Tensor | None = None


class Adapter(ABC):
    """Encodes, decodes, conditions, predicts. The pipeline is read, never written.

    Args:
        pipe: the diffusers pipeline.
        runtime: runtime name.
        dtype: the network's dtype or its name; None keeps the pipeline's, but float32 for float16 on a CPU, and lets
            runtime "auto" take bfloat16 for a large network on a CPU where that pays.
        opaque: why the network must run as the Python module it is, beside what it shows itself.
        precompute: parts of the network computed once a run, names in `precompute.PARTS`; None takes all that runtime
            and network allow.

    Raises:
        ValueError: unknown runtime or dtype, or the runtime cannot run this network in it.
        RuntimeError: the runtime cannot run here.
    """

    description: ClassVar[str]
    """What the pipeline must be, for the error that lists what is supported."""

    def __init__(
        self,
        pipe: Any,
        runtime: str = "auto",
        dtype: torch.dtype | str | None = None,
        opaque: str | None = None,
        precompute: Sequence[str] | None = None,
    ) -> None:
        self.pipe = pipe
        self._still = [part for name, part in self.parts().items() if not self.read[name].as_it_is]
        """Parts without hooks that move or cast their weights."""
        with exclusive(pipe, self._still):
            if len(self._still) < len(self.read):
                del self.read  # another call may have been moving it
            self._choose(runtime, dtype, opaque)
            self.precomputed = self._precomputed(precompute)
        self.latent_dtype = torch.float64 if self.dtype == torch.float64 else torch.float32
        self.quantised: str | None = None
        """Digest of the int8 network, once `predictor` made it."""

    def _choose(self, runtime: str, dtype: torch.dtype | str | None, opaque: str | None) -> None:
        """Where the network runs, and in what."""
        # Where hooks move the network, only its pipeline knows where it will run.
        self.device = torch.device(self.pipe._execution_device) if self.network.as_it_is else self.network.device
        elsewhere = getattr(runtime, "target", None) is not None
        self.runtime, self.dtype, self.reason, self._faster = runtimes.resolve(
            runtime,
            self.device,
            _network_dtype(dtype, self.network, self.device, elsewhere),
            free=dtype is None,
            parameters=self.network.parameters,
            opaque=opaque or self.opaque,
            identity=lambda: self.identity,
        )

    @staticmethod
    @abstractmethod
    def supports(pipe: Any) -> bool:
        """Whether this family is the pipeline's."""

    @abstractmethod
    def encode(self, image: Any, height: int | None, width: int | None) -> torch.Tensor:
        """x_0 (B, C, h, w) of whatever a user passes as images."""

    @abstractmethod
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) pixels in [0, 1], float32."""

    @abstractmethod
    def condition(self, batch: int, prompts: Prompts, guidance_scale: float) -> Condition:
        """The network's static inputs for `batch` images, and the unconditional ones under guidance."""

    @abstractmethod
    def guidance(self, scale: float) -> float:
        """The scale as far as it runs a second branch, else 1."""

    @contextmanager
    def session(self) -> Iterator[Adapter]:
        """Leaves the pipeline as it was: interrupt flag, progress-bar settings, offloading."""
        with session(self.pipe, self._still) as self._call:
            yield self

    @cached_property
    def read(self) -> dict[str, Reading]:
        """The parts that shape a result as they are in this call, by what they are called in its provenance."""
        return Reading.of(self.parts())

    def parts(self) -> dict[str, torch.nn.Module]:
        """The modules that shape a result, the network among them."""
        return {"network": self.pipe.unet}

    @property
    def network(self) -> Reading:
        """The network as it is in this call."""
        return self.read["network"]

    @property
    def opaque(self) -> str | None:
        """Why the network must run as it is, and may be looked into; None where it may be exported."""
        return self.network.opaque

    @property
    def identity(self) -> str:
        """Digest of the network to the letter.

        Raises:
            ValueError: it cannot be read.
        """
        found = self.network.fingerprint
        if found.exact is None:
            raise ValueError(f"{type(self.pipe.unet).__name__} {found.unreadable}; take runtime='eager'")
        return found.exact

    @property
    def uncapturable(self) -> str | None:
        """Why steps cannot be captured as CUDA graphs; None where they can."""
        if self.device.type != "cuda":
            return f"CUDA graphs need a CUDA device, the pipeline is on {self.device}"
        if not self.runtime.capturable:
            return f"runtime {self.runtime.name!r} runs outside torch's stream"
        return self.opaque

    @property
    def interrupted(self) -> bool:
        return self._call.interrupted

    def predictor(self, x: torch.Tensor, times: torch.Tensor, condition: Condition) -> Conditioned:
        """The network on this runtime for latents like x and a grid's times (n,), bound to its condition."""
        positive, negative = alike(*condition)
        branches, dtype = 1 if negative is None else 2, self.runtime.input_dtype(self.dtype)
        static = {
            name: (value if negative is None else torch.cat([value, negative[name]])).to(dtype)
            for name, value in positive.items()
        }
        before = self._before(dtype)
        # Autograd refuses what is made in inference mode.
        with torch.inference_mode(False):
            table = self._table(before, times, dtype)
        if EMBEDS in static:
            with torch.inference_mode():
                static[EMBEDS] = before.prompt(static[EMBEDS])
        t = times[-1].to(self.device)
        example = {"x": torch.cat([x] * branches).to(dtype), "t": table(t) if table else t, **static}
        spec = runtimes.Spec(
            self.device,
            self.dtype,
            identity=lambda: self.identity,
            addresses=lambda: self.network.addresses,
            precomputed=self.precomputed,
            numerics=numerics(self.device),
            owner=self.pipe.unet,
            parameters=self.network.parameters,
            lasts=self.network.lasts,
        )
        if self._faster is not None:
            why = runtimes.worth_making(self._faster, example, spec, samples=(len(times) - 1) * len(example["x"]))
            if why:
                self.runtime, self.reason = self._faster, why
        if self.dtype == torch.int8:
            spec = replace(spec, calibration=calibration(self.pipe, example, self._described))
        network = runtimes.prepared(self.runtime, self._private_unet, example, spec)
        self.quantised = getattr(network, "digest", None)
        # Python of the caller's sees all images at every evaluation, and never several times in one batch.
        watched = self.opaque is not None
        return Conditioned(
            outside(network) if watched else network,
            static,
            len(x),
            branches,
            self.dtype,
            self.runtime.dynamic_batch and not watched,
            dtype,
            self.runtime.batched_time and not watched,
            times=table,
            prompt=before.prompt,
        )

    def _described(self, texts: list[str]) -> dict[str, torch.Tensor]:
        return self.condition(len(texts), Prompts(texts), 1.0)[0]

    def _private_unet(self) -> torch.nn.Module:
        dtype = self.runtime.weights_dtype(self.dtype) or self.network.dtype
        clone = private(self.pipe.unet, dtype, self.runtime.memory_format(self.device))
        clone = reduced(clone, self.precomputed) if self.precomputed else clone
        return fused(clone) if self.runtime.fuses(self.device) and not self.opaque else clone

    def _before(self, dtype: torch.dtype) -> Precomputed:
        """What the network is spared, ready like the network itself."""
        unet, read, parts = self.pipe.unet, self.network, self.precomputed
        if not parts:
            return Precomputed(unet, parts, dtype)
        return read.keep(
            ("precomputed", parts, dtype),
            lambda: Precomputed(unet, parts, dtype),
            lambda made: beside(made.layers, read.addresses),
        )

    def _table(self, before: Precomputed, times: torch.Tensor, dtype: torch.dtype) -> TimeTable | None:
        if TIMES not in self.precomputed:
            return None
        what = ("times", tuple(times.tolist()), times.dtype, dtype)
        return self.network.keep(what, lambda: before.times(times.to(self.device)), lambda table: table.rows.nbytes)

    def _precomputed(self, asked: Sequence[str] | None) -> tuple[str, ...]:
        if isinstance(asked, str):
            raise TypeError(f"precompute must be a sequence of names out of {PARTS}, got the text {asked!r}")
        unet = self.pipe.unet
        no = dict.fromkeys(PARTS, self.opaque) if self.opaque else self.network.once("refusals", lambda: refusals(unet))
        if not self.runtime.precomputes:
            no = dict.fromkeys(PARTS, f"runtime {self.runtime.name!r} takes the network whole")
        if asked is None:
            return tuple(part for part in PARTS if part not in no)
        for part in asked:
            if part not in PARTS:
                raise ValueError(f"unknown part {part!r} in precompute; expected some of {PARTS}")
            if part in no:
                raise ValueError(f"precompute={part!r} is unavailable: {no[part]}; leave it out, or pass None")
        return tuple(part for part in PARTS if part in asked)

    def latents_of(self, image: Any, height: int | None, width: int | None) -> torch.Tensor | None:
        """The image where it is already latents, (B, C, h, w) of the network's channels, checked; else None."""
        channels = self.pipe.unet.config.in_channels
        if not isinstance(image, torch.Tensor) or image.ndim != 4 or image.shape[1] != channels:
            return None
        x = image.detach()
        if height is not None or width is not None:
            raise ValueError("height and width resize images; latents keep their size, pass neither")
        if x.numel() == 0 or not x.is_floating_point() or not bool(x.isfinite().all()):
            raise ValueError(
                f"latents must be finite floats of shape (B, {channels}, h, w), got {x.dtype} {tuple(x.shape)}"
                + (" with non-finite values" if x.is_floating_point() and x.numel() else "")
            )
        return x.to(self.device, self.latent_dtype)


def _network_dtype(
    asked: torch.dtype | str | None, network: Reading, device: torch.device, elsewhere: bool
) -> torch.dtype:
    """The dtype to compute in, here or, as an engine that is only built, `elsewhere`."""
    slow = device.type == "cpu"
    if asked is None:
        half = network.dtype == torch.float16
        return torch.float32 if half and slow and not network.as_it_is else network.dtype
    dtype = DTYPES.get(asked) if isinstance(asked, str) else asked
    if dtype not in DTYPES.values():
        raise ValueError(f"unknown dtype {asked!r}; expected one of {', '.join(DTYPES)}")
    if dtype == torch.float16 and slow and not elsewhere:
        warn("float16 on a CPU is slow and overflows easily; prefer float32 or bfloat16")
    return dtype
