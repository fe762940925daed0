"""IP-Adapters: images beside the text, by cross-attention of their own. Ye et al., 2023 (arXiv 2308.06721)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch

from invfast import arguments
from invfast.adapters import texts, unets

if TYPE_CHECKING:
    from invfast.adapters.base import Adapter

IMAGE, EMBEDS = TAKES = ("ip_adapter_image", "ip_adapter_image_embeds")
ROWS, SEQUENCES, FACES = (
    ("ImageProjection",),
    ("IPAdapterPlusImageProjection", "IPAdapterFullImageProjection"),
    ("IPAdapterFaceIDImageProjection",),
)
"""Classes of projections: of an image's embedding, of the image encoder's hidden states, of a face's embedding."""

Pair = tuple[torch.Tensor, torch.Tensor]
"""Of the images, and of none in their place, (B, images, ...) each."""


def projections(unet: Any) -> list[torch.nn.Module]:
    """What reads each adapter's images; none where no adapter is loaded."""
    if unets.projected(unet) != unets.IMAGE_PROMPTS:
        return []
    return list(getattr(unet.encoder_hid_proj, "image_projection_layers", ()))


def unfit(unet: Any) -> Iterator[str]:
    """Why the adapters of a UNet that has some cannot be told their images, as sentences with the remedy."""
    layers = projections(unet)
    if not layers:
        yield "its network is set for an IP-Adapter and has none; call pipe.unload_ip_adapter(), or load one"
    for layer in layers:
        name = type(layer).__name__
        if name not in (*ROWS, *SEQUENCES, *FACES):
            yield (
                f"its IP-Adapter has a {name}, which reads more than the images it is passed; call "
                "pipe.unload_ip_adapter(), or load another kind"
            )


def check(pipe: Any, found: Mapping[str, Any]) -> None:
    """Raises ValueError where images are missing, given to no adapter, or not as many as there are adapters."""
    layers, given, name = projections(pipe.unet), [each for each in TAKES if each in found], type(pipe).__name__
    if not layers:
        if given:
            raise ValueError(f"{given[0]} is for an IP-Adapter, and this {name} has none; call pipe.load_ip_adapter()")
        return
    if len(given) != 1:
        raise ValueError(
            f"this {name} has an IP-Adapter and needs {IMAGE} or {EMBEDS}, got {'both' if given else 'neither'}; pass "
            "one of them, or call pipe.unload_ip_adapter()"
        )
    entries = _entries(found)
    if len(entries) != len(layers):
        raise ValueError(
            f"{given[0]} has {len(entries)} entries for {len(layers)} IP-Adapters; pass a list of one an adapter, "
            + ("each an image or a list of images" if given[0] == IMAGE else "each a tensor")
        )
    if given[0] == IMAGE:
        _check_images(pipe, layers, entries)


def inputs(model: Adapter, batch: int, more: Mapping[str, Any], guided: bool) -> tuple[dict, dict]:
    """The network's inputs of the adapters' images, and those of none in their place.

    Raises:
        ValueError: embeddings of a shape that the adapters do not take.
    """
    layers = projections(model.pipe.unet)
    if not layers:
        return {}, {}
    read = _encoded if IMAGE in more else _given
    pairs = [
        read(model, j, entry, layer, batch, guided)
        for j, (entry, layer) in enumerate(zip(_entries(more), layers, strict=True))
    ]
    shown, hidden = ({f"{unets.IMAGES}{j}": rows for j, rows in enumerate(side)} for side in zip(*pairs, strict=True))
    return shown, hidden


def _entries(more: Mapping[str, Any]) -> list[Any]:
    """One an adapter."""
    value = more.get(IMAGE, more.get(EMBEDS))
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _check_images(pipe: Any, layers: list[torch.nn.Module], entries: list[Any]) -> None:
    missing = [part for part in ("image_encoder", "feature_extractor") if getattr(pipe, part, None) is None]
    if missing:
        raise ValueError(f"{IMAGE} cannot be encoded: the pipeline has no {' and no '.join(missing)}; pass {EMBEDS}")
    for j, (entry, layer) in enumerate(zip(entries, layers, strict=True)):
        if type(layer).__name__ in FACES:
            raise ValueError(f"{IMAGE}[{j}] is for an IP-Adapter of faces, told by their embeddings; pass {EMBEDS}")
        arguments.check_images(f"{IMAGE}[{j}]", entry)


def _encoded(model: Adapter, j: int, entry: Any, layer: torch.nn.Module, batch: int, guided: bool) -> Pair:
    """An entry's images, all of them shown to every image that is inverted, as in diffusers."""
    entry = list(entry) if isinstance(entry, tuple) else entry
    found = model.pipe.encode_image(entry, model.device, 1, type(layer).__name__ not in ROWS)
    shown, hidden = (rows.unsqueeze(0).expand(batch, *rows.shape) for rows in found)
    return shown, hidden


def _given(model: Adapter, j: int, embeds: Any, layer: torch.nn.Module, batch: int, guided: bool) -> Pair:
    """The caller's embeddings, (1 or B, images, ...), under guidance with as many before them for the negative."""
    name, rows = f"{EMBEDS}[{j}]", len(embeds) if isinstance(embeds, torch.Tensor) and embeds.ndim else 0
    if guided and rows not in (2, 2 * batch):
        raise ValueError(
            f"{name} must have {' or '.join(map(str, sorted({2, 2 * batch})))} rows under guidance, the negative ones "
            f"first as in diffusers, got {tuple(embeds.shape) if rows else type(embeds).__name__}"
        )
    if type(layer).__name__ not in SEQUENCES and rows and embeds.ndim == 4 and embeds.shape[2] == 1:
        embeds = embeds.squeeze(2)  # as diffusers' documentation has those of faces
    shape = ("images", *(("tokens",) if type(layer).__name__ in SEQUENCES else ()), _width(layer))
    hidden, shown = embeds.chunk(2) if guided else (embeds, embeds)
    shown, hidden = (texts.given(half, batch, name, shape, model.device) for half in (shown, hidden))
    return shown, hidden


def _width(layer: torch.nn.Module) -> int:
    """Of an embedding that it takes."""
    kind = type(layer).__name__
    if kind in ROWS:
        return layer.image_embeds.in_features
    return layer.proj_in.in_features if hasattr(layer, "proj_in") else layer.ff.net[0].proj.in_features
