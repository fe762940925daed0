"""One pipeline for the time of one call: what all families share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar

import torch

from invfast import flows
from invfast.adapters import door
from invfast.adapters.session import exclusive, session
from invfast.denoiser import Condition, Denoiser, Form, Reading
from invfast.denoiser.calibration import calibration
from invfast.denoiser.clone import private
from invfast.runtimes import Calibration

NO_BETAS = "its ranges are measured along a grid of betas, and rectified flow has none; take bfloat16"


@dataclass(frozen=True, eq=False)
class Prompts:
    """What the images show: texts, one an image, or embeddings (1 or B, tokens, width) in their place.

    `more` holds what else a family takes, by the names of `Adapter.takes`, as `Adapter.check` leaves it.
    """

    texts: list[str] | None = None
    negative: list[str] | None = None
    embeds: torch.Tensor | None = None
    negative_embeds: torch.Tensor | None = None
    more: Mapping[str, Any] = field(default_factory=dict)


class Adapter(ABC):
    """Encodes, decodes, conditions. The pipeline is read, never written.

    Args:
        pipe: the diffusers pipeline.
        runtime, dtype, opaque, precompute: as in `Denoiser`.

    Raises:
        ValueError, RuntimeError: as in `Denoiser`; or something of the pipeline would be ignored, or break.
    """

    description: ClassVar[str]
    """What the pipeline must be, for the error that lists what is supported."""
    pipelines: ClassVar[tuple[str, ...]]
    """Its classes in diffusers; a subclass counts where it has the same parts."""
    takes: ClassVar[tuple[str, ...]] = ()
    """What it may be told of the images beside prompt and embeddings, by diffusers' names."""
    again: ClassVar[tuple[str, ...]] = ()
    """What of that no file holds, tensors and images, so that the way back needs it again."""

    def __init__(
        self,
        pipe: Any,
        runtime: str = "auto",
        dtype: torch.dtype | str | None = None,
        opaque: str | None = None,
        precompute: Sequence[str] | None = None,
    ) -> None:
        self.pipe = pipe
        self._admit(self.unfit())
        self._still = [part for name, part in self.parts().items() if not self.read[name].as_it_is]
        """Parts without hooks that move or cast their weights."""
        with exclusive(pipe, self._still):
            if len(self._still) < len(self.read):
                del self.read  # another call may have been moving it
            network = self.read["network"]
            self._admit([network.once("remembers", lambda: door.remembers(network.module))])
            # Where hooks move the network, only its pipeline knows where it will run.
            device = torch.device(pipe._execution_device) if network.as_it_is else network.device
            self.denoiser = Denoiser(
                network, self._form(), device, runtime, dtype, opaque, precompute, self._calibration
            )

    @abstractmethod
    def unfit(self) -> Iterable[str | None]:
        """What of the pipeline would be ignored, or ends in the middle, as sentences with the remedy."""

    @abstractmethod
    def parts(self) -> dict[str, torch.nn.Module]:
        """The modules that shape a result by their names in its provenance; "network" is the one that is inverted."""

    @abstractmethod
    def form(self) -> Form:
        """What the network is like."""

    @abstractmethod
    def encode(self, image: Any, height: int | None, width: int | None) -> torch.Tensor:
        """x_0 (B, C, h, w) of whatever a user passes as images."""

    @abstractmethod
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) pixels in [0, 1], float32."""

    @abstractmethod
    def condition(self, latents: torch.Tensor, prompts: Prompts, guidance_scale: float) -> Condition:
        """The network's static inputs for latents like these, and the unconditional ones under guidance."""

    @abstractmethod
    def guidance(self, scale: float) -> float:
        """The weight of the conditional output where the scale runs a second branch, else 1."""

    def shifted(self, steps: int, shape: torch.Size) -> dict[str, Any]:
        """How its pipeline sets a scheduler of rectified flow for latents (B, C, h, w): "mu", and "sigmas" where it
        gives them.
        """
        return {}

    def check(self, batch: int, more: Mapping[str, Any]) -> dict[str, Any]:
        """What a caller says of the images beside prompt and embeddings, as far as it is said.

        Raises:
            TypeError: a name that this family does not take.
            ValueError: a value it cannot use.
        """
        unknown = sorted(more.keys() - set(self.takes))
        if unknown:
            raise TypeError(
                f"unknown argument {unknown[0]!r}: beside prompts and embeddings {type(self).__name__} takes "
                f"{', '.join(self.takes) or 'nothing'}"
            )
        return {name: value for name, value in more.items() if value is not None}

    def no_texts(self, prompts: Prompts) -> None:
        """Raises ValueError where a caller says in words or embeddings what this family cannot follow."""
        embeds = prompts.embeds is not None or prompts.negative_embeds is not None
        if embeds or any(prompts.texts or ()) or any(prompts.negative or ()):
            raise ValueError(f"{type(self.pipe).__name__} takes no text: pass no prompt and no embeddings")

    def encoders(self) -> dict[str, Any]:
        """What encodes texts, by the names of its parts in the pipeline; None where it is not there."""
        return {}

    @contextmanager
    def session(self) -> Iterator[Adapter]:
        """Leaves the pipeline as it was: interrupt flag, progress-bar settings, offloading."""
        with session(self.pipe, self._still) as self._call:
            yield self

    @cached_property
    def read(self) -> dict[str, Reading]:
        """The parts that shape a result as they are in this call."""
        return Reading.of(self.parts())

    @property
    def device(self) -> torch.device:
        return self.denoiser.device

    @property
    def latent_dtype(self) -> torch.dtype:
        return self.denoiser.latent_dtype

    @property
    def interrupted(self) -> bool:
        return self._call.interrupted

    def are_latents(self, image: Any) -> bool:
        """Whether what a user passes as images is taken for latents."""
        return isinstance(image, torch.Tensor) and image.ndim == 4 and image.shape[1] == self.denoiser.form.channels

    def latents_of(self, image: Any, height: int | None, width: int | None) -> torch.Tensor | None:
        """The image where it is already latents, (B, C, h, w) of the network's channels, checked; else None."""
        if not self.are_latents(image):
            return None
        x, channels = image.detach(), self.denoiser.form.channels
        if height is not None or width is not None:
            raise ValueError("height and width resize images; latents keep their size, pass neither")
        if x.numel() == 0 or not x.is_floating_point() or not bool(x.isfinite().all()):
            raise ValueError(
                f"latents must be finite floats of shape (B, {channels}, h, w), got {x.dtype} {tuple(x.shape)}"
                + (" with non-finite values" if x.is_floating_point() and x.numel() else "")
            )
        return x.to(self.device, self.latent_dtype)

    def _form(self) -> Form:
        form = self.form()
        return replace(form, uncalibrated=NO_BETAS) if flows.is_flow(self.pipe.scheduler) else form

    def _admit(self, unfit: Iterable[str | None]) -> None:
        why = [each for each in unfit if each]
        if why:
            raise ValueError(f"{type(self.pipe).__name__} cannot be inverted: {'; '.join(why)}")

    def _calibration(self, example: Mapping[str, torch.Tensor]) -> Calibration:
        """What int8 is calibrated on, for inputs like these."""

        def network() -> torch.nn.Module:
            clone = private(self.denoiser.network.module, torch.float32, torch.preserve_format)
            return self.denoiser.form.flat(clone)

        def condition(texts: list[str]) -> dict[str, torch.Tensor]:
            like = example["x"][:1].expand(len(texts), -1, -1, -1)
            return self.condition(like, Prompts(texts), 1.0)[0]

        return calibration(network, self.pipe.scheduler, example, condition, self.encoders())
