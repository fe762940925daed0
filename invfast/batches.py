"""The images of inversions: some of them, several inversions as one batch, and all of it elsewhere.

Side by side, what is one image's is put together (latents, state, texts, residuals, digests of embeddings), samples and
seconds are summed, and what a batch has once (grid, method, node, guidance, network) must be the same. Versions and
kernels are kept as far as they agree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from invfast import plain, stored

if TYPE_CHECKING:
    from invfast.inversion import Inversion, Stats

RUN = ("schedule", "method", "node", "guidance_scale")
"""What inversions must share to be run as one batch."""
WITH = ("pipeline", "betas", "network.weights", "network.settings", "vae.weights", "vae.settings", "quantised")
"""Provenance of which two that recorded it must say the same."""


def some(inversion: Inversion, index: slice) -> Inversion:
    """Of some of the images; tensors are views, times and counts of samples stay the batch's."""
    stats = inversion.stats
    residual = None if stats.residual is None else stats.residual[:, index]
    each = {name: None if (v := getattr(stats, name)) is None else v[index] for name in ("reached", "decoder_residual")}
    return replace(
        inversion,
        latents=inversion.latents[index],
        init_latents=inversion.init_latents[index],
        state={name: value[index] for name, value in inversion.state.items()},
        prompt=None if inversion.prompt is None else inversion.prompt[index],
        negative_prompt=None if inversion.negative_prompt is None else inversion.negative_prompt[index],
        stats=replace(stats, evaluations=stats.evaluations[index], residual=residual, **each),
        trajectory=None if inversion.trajectory is None else inversion.trajectory[:, index],
        provenance=stored.of_images(inversion.provenance, index),
        conditions=stored.of_images(inversion.conditions, index),
    )


def converted(inversion: Inversion, device: Any, dtype: Any) -> Inversion:
    """On another device, in another dtype, or both; None leaves either as it is. The trajectory stays on the CPU.

    Raises:
        ValueError: a dtype that latents do not have.
    """
    if dtype not in (None, *stored.REAL):
        raise ValueError(f"latents are kept in float32 or float64, got dtype {dtype}; invert(dtype=) is the network's")

    def moved(x: torch.Tensor | None, to: Any = device) -> Any:
        return None if x is None else x.to(device=to, dtype=dtype)

    return replace(
        inversion,
        latents=moved(inversion.latents),
        init_latents=moved(inversion.init_latents),
        state={name: moved(x) for name, x in inversion.state.items()},
        trajectory=moved(inversion.trajectory, None),
    )


def concatenated(cls: type, inversions: Any) -> Inversion:
    """Inversions, instances of `cls`, as one batch.

    Raises:
        TypeError: no list of them.
        ValueError: an empty list, or they differ in what a batch has once; names it.
    """
    every = list(inversions) if isinstance(inversions, (list, tuple)) else None
    if every is None or not all(isinstance(each, cls) for each in every):
        got = [type(each).__name__ for each in every or [inversions]]
        raise TypeError(f"concatenate takes a list of inversions, as in [a, b], got {', '.join(got)}")
    if not every:
        raise ValueError("no inversions to concatenate: the list is empty")
    first = every[0]
    for name in RUN:
        same(name, [getattr(each, name) for each in every])
    same("whether they have no stats", [each.stats is None for each in every])
    names = same("names of their state", [sorted(each.state) for each in every])
    return replace(
        first,
        latents=_rows("latents", [each.latents for each in every]),
        init_latents=_rows("init_latents", [each.init_latents for each in every]),
        state={name: _rows(f"state {name!r}", [each.state[name] for each in every]) for name in names},
        prompt=_lists("prompt", [each.prompt for each in every]),
        negative_prompt=_lists("negative_prompt", [each.negative_prompt for each in every]),
        stats=None if first.stats is None else _stats([each.stats for each in every]),
        trajectory=_rows("trajectory", [each.trajectory for each in every], 1),
        provenance=_provenance([each.provenance for each in every]),
        conditions=_conditions([each.conditions for each in every]),
    )


def same(name: str, values: Sequence[Any]) -> Any:
    """The value that all have.

    Raises:
        ValueError: they differ; names it and both values.
    """
    for value in values[1:]:
        if not plain.same(value, values[0]):
            raise ValueError(
                f"the inversions differ in {name}: {plain.shown(values[0])} and {plain.shown(value)}; a batch has one, "
                "invert both alike"
            )
    return values[0]


def _rows(name: str, values: list[torch.Tensor | None], axis: int = 0) -> Any:
    """Tensors of as many images together; None where none has one."""
    if all(value is None for value in values):
        return None
    if any(value is None for value in values):
        raise ValueError(f"some of the inversions have {name} and some have none; leave it out of all, or of none")
    first = values[0]
    for value in values[1:]:
        shapes = [[*x.shape[:axis], *x.shape[axis + 1 :]] for x in (first, value)]
        if shapes[0] != shapes[1] or value.dtype != first.dtype:
            raise ValueError(
                f"the inversions differ in {name}: {first.dtype} {tuple(first.shape)} and {value.dtype} "
                f"{tuple(value.shape)}; invert images of one size, and convert with .to(dtype)"
            )
        if value.device != first.device:
            raise ValueError(f"{name} lie on {first.device} and {value.device}; move them with .to(device)")
    return torch.cat(values, axis)


def _lists(name: str, values: list[Any]) -> list[Any] | None:
    """Texts of as many images together; None where none has one."""
    if all(value is None for value in values):
        return None
    if any(value is None for value in values):
        raise ValueError(f"some of the inversions have a {name} and some have none; invert all with one, or none")
    return [one for value in values for one in value]


def _stats(every: list[Stats]) -> Stats:
    for name in ("runtime", "dtype"):  # the way back follows them
        same(f"the {name} they ran in", [getattr(stats, name) for stats in every])
    words = {name: _words([getattr(stats, name) for stats in every]) for name in ("device", "kernels", "reason")}
    return replace(
        every[0],
        evaluations=tuple(n for stats in every for n in stats.evaluations),
        samples=sum(stats.samples for stats in every),
        seconds=sum(stats.seconds for stats in every),
        residual=_rows("residual", [stats.residual for stats in every], 1),
        cuda_graph=all(stats.cuda_graph for stats in every),
        precomputed=tuple(p for p in every[0].precomputed if all(p in stats.precomputed for stats in every)),
        reached=_flat([stats.reached for stats in every]),
        decoder_residual=_flat([stats.decoder_residual for stats in every]),
        **words,
    )


def _flat(values: list[tuple[Any, ...] | None]) -> tuple[Any, ...] | None:
    """One value an image; None where some have none."""
    return None if None in values else tuple(one for each in values for one in each)


def _words(each: list[str]) -> str:
    return "; ".join(dict.fromkeys(each))


def _provenance(every: list[Mapping[str, Any]]) -> dict[str, Any]:
    versions = all(plain.same(each.get(name), every[0].get(name)) for name in stored.VERSIONS for each in every)
    found: dict[str, Any] = {}
    for name in dict.fromkeys(name for each in every for name in each):
        recorded = [each[name] for each in every if each.get(name) is not None]
        if name in stored.DIGESTS:
            found[name] = [one for each in recorded for one in each] if len(recorded) == len(every) else None
        elif all(plain.same(value, recorded[0]) for value in recorded):
            found[name] = recorded[0] if recorded else None
        elif name in WITH and (versions or "settings" not in name):  # another version may name settings otherwise
            same(f"what they were made with, {name}", recorded)
    return found


def _conditions(every: list[Mapping[str, Any]]) -> dict[str, Any]:
    names = same("what else their network was told", [sorted(each) for each in every])
    return {
        name: _lists(name, [each[name] for each in every])
        if name in stored.PER_IMAGE
        else same(name, [each[name] for each in every])
        for name in names
    }
