"""How an image is edited: what of the source's way down the edit's is given.

Each is a frozen dataclass of settings. What one shares between the images' rows is a `Control`, which the network looks
up by its own time, so that a step is the same work whatever it does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import ClassVar

from invfast.editing.attention import MASACTRL, P2P, PORTRAIT, Control


@dataclass(frozen=True)
class Editor:
    """Base of all editors. What a subclass does not set is as here."""

    rows: ClassVar[int] = 1
    """Latents that go down side by side for one image: the edit alone, or the source before it."""
    corrected: ClassVar[bool] = False
    """Whether the source's latents are put back onto the inversion's path after every step."""

    @property
    def control(self) -> Control | None:
        """What the attention of the rows shares; None where each goes its own way."""
        return None


@dataclass(frozen=True)
class Prompt(Editor):
    """The image is regenerated from its noise under the other prompt, and nothing else."""


@dataclass(frozen=True)
class MasaCtrl(Editor):
    """Mutual self-attention: from a step and a layer on the edit takes the source's keys and values.

    Cao et al., "MasaCtrl: Tuning-Free Mutual Self-Attention Control", ICCV 2023 (arXiv 2304.08465). The layout comes
    from the target prompt, what things look like from the source.

    Args:
        step: the first step of it, counted from the noise; 4 of 50 as published.
        layer: the first self-attention layer of it, in the order they run; 10 of SD's 16 as published. None is the
            first of those at five eighths of them, wherever the network has another number.

    Raises:
        ValueError: a value below 0.
    """

    rows: ClassVar[int] = 2

    step: int = 4
    layer: int | None = None

    def __post_init__(self) -> None:
        _check_count("MasaCtrl step", self.step)
        if self.layer is not None:
            _check_count("MasaCtrl layer", self.layer)

    @property
    def control(self) -> Control:
        return Control(MASACTRL, self.layer)


@dataclass(frozen=True)
class PromptToPrompt(Editor):
    """The edit looks at the image where the source did: its attention maps are the source's for the first steps.

    Hertz et al., "Prompt-to-Prompt Image Editing with Cross Attention Control", ICLR 2023 (arXiv 2208.01626).

    Args:
        kind: how the maps of the source's words become those of the target's. "replace": word by word, the two prompts
            having as many; "refine": words that both have keep their maps, new ones have their own. None takes
            "replace" where the prompts have as many words, else "refine".
        cross: share of the steps in which cross-attention maps are the source's.
        self_: likewise of self-attention maps, at 16 x 16 and below.
        weights: (word of the target, factor) of maps that are scaled, in the steps of `cross`.

    Raises:
        ValueError: an unknown kind, a share outside [0, 1], a factor that is negative.
    """

    rows: ClassVar[int] = 2

    kind: str | None = None
    cross: float = 0.8
    self_: float = 0.4
    weights: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in (None, "replace", "refine"):
            raise ValueError(f"unknown PromptToPrompt kind {self.kind!r}; expected 'replace', 'refine' or None")
        for name in ("cross", "self_"):
            value = getattr(self, name)
            if not isinstance(value, Real) or not 0 <= value <= 1:
                raise ValueError(f"PromptToPrompt {name} must lie in [0, 1], got {value!r}")
        for word, factor in self.weights:
            if not isinstance(word, str) or not isinstance(factor, Real) or not factor >= 0:
                raise ValueError(f"PromptToPrompt weights are (word, factor of at least 0), got {(word, factor)!r}")

    @property
    def control(self) -> Control:
        return Control(P2P)


@dataclass(frozen=True)
class Portrait(Editor):
    """The edit keeps the source's queries and reads the keys and values of another image, its style.

    Liu et al., "Portrait Diffusion: Training-free Face Stylization with Chain-of-Painting", 2023 (arXiv 2312.02212).
    What self-attention gives is (1 - blend) that of the source and blend that of its queries over the style.

    Args:
        blend: share of the style.
        step: the first step of it, counted from the noise.
        layer: as in `MasaCtrl`.

    Raises:
        ValueError: a value outside its range.
    """

    rows: ClassVar[int] = 3

    blend: float = 0.8
    step: int = 0
    layer: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.blend, Real) or not 0 <= self.blend <= 1:
            raise ValueError(f"Portrait blend must lie in [0, 1], got {self.blend!r}")
        _check_count("Portrait step", self.step)
        if self.layer is not None:
            _check_count("Portrait layer", self.layer)

    @property
    def control(self) -> Control:
        return Control(PORTRAIT, self.layer)


class Around(Editor):
    """An editor around another, which has what it does not set."""

    editor: Editor

    @property
    def rows(self) -> int:
        return self.editor.rows

    @property
    def control(self) -> Control | None:
        return self.editor.control

    @property
    def corrected(self) -> bool:
        return self.editor.corrected


@dataclass(frozen=True)
class Direct(Around):
    """Another editor whose source goes down the inversion's own path, so that it shows the image itself.

    Ju et al., "PnP Inversion", ICLR 2024 (arXiv 2310.01506). Needs the trajectory, `invert(..., save_trajectory=True)`,
    or an inversion by `methods.Direct`.

    Args:
        editor: one whose attention reads the source.

    Raises:
        ValueError: another editor.
    """

    corrected: ClassVar[bool] = True

    editor: Editor = field(default_factory=MasaCtrl)

    def __post_init__(self) -> None:
        if not isinstance(self.editor, Editor) or self.editor.control is None:
            raise ValueError(f"Direct puts the source onto its path, and {self.editor!r} takes nothing from one")
        if isinstance(self.editor, Around):
            raise ValueError(f"Direct goes around an editor itself, got {self.editor!r}; put a Region around Direct")


@dataclass(frozen=True)
class Region(Around):
    """Another editor, its edit kept to boxes of the image: everything else stays on the inversion's path.

    So things are inserted where a box says (ObjectAdd, arXiv 2404.17230). `edit(..., mask=)` takes any other shape.
    Needs the trajectory, like `Direct`, but around `FlowEdit`, which goes from image to image.

    Args:
        boxes: (left, top, right, bottom) each, in pixels of the image.
        editor: the other one.

    Raises:
        ValueError: no box, or one without an inside.
    """

    boxes: tuple[tuple[int, int, int, int], ...] = ()
    editor: Editor = field(default_factory=Prompt)

    def __post_init__(self) -> None:
        if not isinstance(self.editor, Editor) or isinstance(self.editor, Region):
            raise ValueError(f"Region goes around an editor, got {self.editor!r}; give all boxes to one Region")
        if not self.boxes:
            raise ValueError("Region needs at least one box (left, top, right, bottom)")
        for box in self.boxes:
            if (
                len(box) != 4
                or not all(isinstance(v, Integral) for v in box)
                or not (box[0] < box[2] and box[1] < box[3])
            ):
                raise ValueError(
                    f"a box is (left, top, right, bottom) in whole pixels, left < right, top < bottom; got {box!r}"
                )


@dataclass(frozen=True)
class FlowEdit(Editor):
    """From image to image along the difference of two velocities, without an inversion's noise; of a rectified flow.

    Kulikov et al., "FlowEdit: Inversion-Free Text-Based Editing Using Pre-Trained Flow Models", ICCV 2025 (arXiv
    2412.08629). Of the inversion it uses image, prompt and grid.

    Args:
        strength: share of the steps that are taken, the last ones; 33 of 50 as published for SD3.
        source_guidance: guidance of the source; that of the edit is `edit`'s. 3.5 and 13.5 as published for SD3.
        draws: noises averaged in every step.
        seed: of the noises.

    Raises:
        ValueError: a value outside its range.
    """

    rows: ClassVar[int] = 2

    strength: float = 0.66
    source_guidance: float = 3.5
    draws: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.strength, Real) or not 0 < self.strength <= 1:
            raise ValueError(f"FlowEdit strength must lie in (0, 1], got {self.strength!r}")
        if not isinstance(self.source_guidance, Real) or not self.source_guidance >= 1:
            raise ValueError(f"FlowEdit source_guidance must be at least 1, got {self.source_guidance!r}")
        if not isinstance(self.draws, Integral) or self.draws < 1:
            raise ValueError(f"FlowEdit draws must be an integer of at least 1, got {self.draws!r}")
        _check_count("FlowEdit seed", self.seed)


def resolve(method: str | Editor) -> Editor:
    """An editor by name, or the one given.

    Raises:
        ValueError: unknown name. TypeError: neither name nor Editor.
    """
    if isinstance(method, Editor):
        return method
    if not isinstance(method, str):
        raise TypeError(f"method must be an editor's name or an Editor, got {method!r}")
    if method not in EDITORS:
        raise ValueError(f"unknown editing method {method!r}; expected one of {', '.join(EDITORS)}, or an Editor")
    return EDITORS[method]


def innermost(editor: Editor) -> Editor:
    """What wrappers like Direct and Region are around."""
    while isinstance(editor, Around):
        editor = editor.editor
    return editor


def _check_count(name: str, value: object) -> None:
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{name} must be an integer of at least 0, got {value!r}")


EDITORS: dict[str, Editor] = {
    "prompt": Prompt(),
    "prompt_to_prompt": PromptToPrompt(),
    "masactrl": MasaCtrl(),
    "portrait": Portrait(),
    "direct": Direct(),
    "flow_edit": FlowEdit(),
}
"""By name, with their published settings. `Region` needs boxes."""
