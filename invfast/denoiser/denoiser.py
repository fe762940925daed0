"""One network for the time of one call: where it runs, in what, and what it is called with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch

from invfast import runtimes
from invfast.ambient import numerics
from invfast.denoiser.clone import private
from invfast.denoiser.conditioned import Conditioned, alike
from invfast.denoiser.form import Form, axes
from invfast.denoiser.fused import fused
from invfast.denoiser.precompute import MASK, PARTS, SCALE, TIMES, Precomputed, TimeTable, reduced, refusals
from invfast.denoiser.predictor import outside
from invfast.denoiser.reading import Reading
from invfast.store import beside
from invfast.warned import warn

DTYPES = {
    str(d).removeprefix("torch."): d for d in (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int8)
}

Condition = tuple[dict[str, torch.Tensor], dict[str, torch.Tensor] | None]
"""The network's static inputs by name, (B, ...) each, and the unconditional ones under guidance."""


class Denoiser:
    """A network, read and never written.

    Args:
        network: as it is in this call.
        form: what its family says of it.
        device: where its pipeline runs it.
        runtime: runtime name.
        dtype: the network's dtype or its name; None keeps its own, but float32 for float16 on a CPU, and lets runtime
            "auto" take bfloat16 for a large network on a CPU where that pays.
        opaque: why it must run as the Python module it is, beside what it shows itself.
        precompute: parts of it computed once a run, names in `precompute.PARTS`; None takes all that runtime and
            network allow.
        calibration: what int8 is calibrated on, by inputs like those it will be called with.

    Raises:
        ValueError: unknown runtime or dtype, or the runtime cannot run this network in it.
        RuntimeError: the runtime cannot run here.
    """

    def __init__(
        self,
        network: Reading,
        form: Form,
        device: torch.device,
        runtime: str,
        dtype: torch.dtype | str | None,
        opaque: str | None,
        precompute: Sequence[str] | None,
        calibration: Callable[[Mapping[str, torch.Tensor]], runtimes.Calibration],
    ) -> None:
        self.network, self.form, self.device, self.calibration = network, form, device, calibration
        elsewhere = getattr(runtime, "target", None) is not None
        self.runtime, self.dtype, self.reason, self._faster = runtimes.resolve(
            runtime,
            device,
            _dtype(dtype, network, device, elsewhere),
            free=dtype is None,
            parameters=network.parameters,
            opaque=opaque or self.opaque,
            identity=lambda: self.identity,
            refused=form.refused,
        )
        if self.dtype == torch.int8 and form.uncalibrated:
            raise ValueError(f"dtype='int8' is unavailable: {form.uncalibrated}")
        self.latent_dtype = torch.float64 if self.dtype == torch.float64 else torch.float32
        self.precomputed = self._precomputed(precompute)
        self.quantised: str | None = None
        """Digest of the int8 network, once `predictor` made it."""

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
            raise ValueError(f"{type(self.network.module).__name__} {found.unreadable}; take runtime='eager'")
        return found.exact

    @property
    def uncapturable(self) -> str | None:
        """Why steps cannot be captured as CUDA graphs; None where they can."""
        if self.device.type != "cuda":
            return f"CUDA graphs need a CUDA device, the pipeline is on {self.device}"
        if not self.runtime.traits.capturable:
            return f"runtime {self.runtime.name!r} runs outside torch's stream"
        return self.opaque

    def predictor(
        self, x: torch.Tensor, times: torch.Tensor, condition: Condition, steps: int | None = None
    ) -> Conditioned:
        """The network on this runtime for latents like x and a grid's times (n,), bound to its condition.

        It will be asked some `steps` times, by default once for every time but the first.
        """
        positive, negative = alike(*condition, self.form.repeats)
        branches, dtype = 1 if negative is None else 2, self.runtime.input_dtype(self.dtype)
        static = {n: x if negative is None else torch.cat([x, negative[n]]) for n, x in positive.items()}
        outside_it = {SCALE} if self.form.combine else set()
        static = {n: x.to(dtype) if x.is_floating_point() and n not in outside_it else x for n, x in static.items()}
        if MASK in static and bool(static[MASK].all()):
            del static[MASK]  # attention without one is faster, and what pipelines ask for then
        before = self._before(dtype)
        # Autograd refuses what is made in inference mode.
        with torch.inference_mode(False):
            table = self._table(before, times, dtype)
        with torch.inference_mode():
            static = before.static(static)
        t = times[-1].to(self.device)
        example = {"x": torch.cat([x] * branches).to(dtype), "t": table(t) if table else t, **static}
        example = {name: value for name, value in example.items() if name not in outside_it}
        spec = self._spec(example)
        if self._faster is not None:
            asked = (steps or len(times) - 1) * len(example["x"])
            why = runtimes.worth_making(self._faster, example, spec, samples=asked)
            if why:
                self.runtime, self.reason = self._faster, why
        if self.dtype == torch.int8:
            spec = replace(spec, calibration=self.calibration(example))
        network = runtimes.prepared(self.runtime, self._private, example, spec)
        self.quantised = getattr(network, "digest", None)
        # Python of the caller's sees all images at every evaluation, and never several times in one batch.
        watched, traits = self.opaque is not None, self.runtime.traits
        return Conditioned(
            outside(network) if watched else network,
            static,
            len(x),
            branches,
            self.dtype,
            traits.dynamic_batch and not watched,
            dtype,
            traits.batched_time and not watched,
            times=table,
            combine=self.form.combine,
            prompt=before.prompt,
        )

    def _spec(self, example: Mapping[str, torch.Tensor]) -> runtimes.Spec:
        return runtimes.Spec(
            self.device,
            self.dtype,
            identity=lambda: self.identity,
            addresses=lambda: self.network.addresses,
            precomputed=self.precomputed,
            numerics=numerics(self.device),
            owner=self.network.module,
            parameters=self.network.parameters,
            lasts=self.network.lasts,
            axes=axes(example, self.form.factor),
            in_float=self.form.in_float,
        )

    def _private(self) -> torch.nn.Module:
        dtype = self.runtime.weights_dtype(self.dtype) or self.network.dtype
        clone = private(self.network.module, dtype, self.runtime.memory_format(self.device))
        clone = reduced(clone, self.precomputed) if self.precomputed else clone
        clone = fused(clone) if self.runtime.fuses(self.device) and not self.opaque else clone
        return self.form.flat(clone)

    def _before(self, dtype: torch.dtype) -> Precomputed:
        """What the network is spared, ready like the network itself."""
        module, parts = self.network.module, self.precomputed
        if not parts:
            return Precomputed(module, parts, dtype)
        return self.network.keep(
            ("precomputed", parts, dtype),
            lambda: Precomputed(module, parts, dtype),
            lambda made: beside(made.layers, self.network.addresses),
        )

    def _table(self, before: Precomputed, times: torch.Tensor, dtype: torch.dtype) -> TimeTable | None:
        if TIMES not in self.precomputed:
            return None
        what = ("times", tuple(times.tolist()), times.dtype, dtype, numerics(self.device))
        return self.network.keep(what, lambda: before.times(times.to(self.device)), lambda table: table.rows.nbytes)

    def _precomputed(self, asked: Sequence[str] | None) -> tuple[str, ...]:
        if isinstance(asked, str):
            raise TypeError(f"precompute must be a sequence of names out of {PARTS}, got the text {asked!r}")
        if self.opaque:
            no = dict.fromkeys(PARTS, self.opaque)
        else:
            no = self.network.once("refusals", lambda: refusals(self.network.module))
        if not self.runtime.traits.precomputes:
            no = dict.fromkeys(PARTS, f"runtime {self.runtime.name!r} takes the network whole")
        if asked is None:
            return tuple(part for part in PARTS if part not in no)
        for part in asked:
            if part not in PARTS:
                raise ValueError(f"unknown part {part!r} in precompute; expected some of {PARTS}")
            if part in no:
                raise ValueError(f"precompute={part!r} is unavailable: {no[part]}; leave it out, or pass None")
        return tuple(part for part in PARTS if part in asked)


def _dtype(asked: torch.dtype | str | None, network: Reading, device: torch.device, elsewhere: bool) -> torch.dtype:
    """The dtype to compute in, here or, as an engine that is only built, `elsewhere`."""
    slow = device.type == "cpu" and not elsewhere
    if asked is None:
        half = network.dtype == torch.float16
        return torch.float32 if half and slow and not network.as_it_is else network.dtype
    dtype = dtype_of(asked)
    if dtype == torch.float16 and slow:
        warn("float16 on a CPU is slow and overflows easily; prefer float32 or bfloat16")
    return dtype


def dtype_of(asked: torch.dtype | str) -> torch.dtype:
    """A dtype by name; ValueError where networks are not run in it."""
    dtype = DTYPES.get(asked) if isinstance(asked, str) else asked
    if dtype not in DTYPES.values():
        raise ValueError(f"unknown dtype {asked!r}; expected one of {', '.join(DTYPES)}")
    return dtype
