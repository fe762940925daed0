"""Runs the cases that have no row yet, and says how far it is."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import transformers

from benchmarks.accuracy import pictures, store
from benchmarks.accuracy.cases import SECONDS_AN_EVALUATION, Case
from benchmarks.accuracy.measure import encode, measure
from invfast import demo
from invfast.fingerprint import fingerprint


class Bench:
    """Models and image sets, each loaded once, when a case first asks for it."""

    def __init__(self, runs: Path = pictures.RUNS) -> None:
        self.images = functools.cache(lambda name: pictures.load(name, runs))
        self.digest = functools.cache(lambda name: self.images(name).digest)
        self.weights = functools.cache(self._weights)
        self.encoded = functools.cache(lambda model, name: encode(self.model(model), self.images(name)))

    @functools.cached_property
    def pipe(self) -> Any:
        diffusers.utils.logging.disable_progress_bar()
        transformers.utils.logging.disable_progress_bar()
        return demo.load_pipeline()

    @functools.cached_property
    def early(self) -> Any:
        return demo.load_pipeline(early=True)

    def model(self, name: str) -> Any:
        return self.pipe if name == "emoji64" else self.early

    def _weights(self, name: str) -> str:
        """One digest of everything that is trained in a model."""
        pipe = self.model(name)
        return "|".join(str(fingerprint(part).weights) for part in (pipe.unet, pipe.vae, pipe.text_encoder))

    def key(self, case: Case) -> str:
        return store.key(case.settings(), self.weights(case.model), self.digest(case.images))


def run(cases: Sequence[Case], path: Path, bench: Bench) -> list[store.Row]:
    """Measures what is missing, appends a row as soon as it is there, and returns all rows.

    Raises:
        ValueError: the file of rows is damaged.
        RuntimeError, ImportError: the training data cannot be had.
    """
    keys = {case: bench.key(case) for case in cases}
    rows = store.keep(path, keys.values())
    done = {row["key"] for row in rows if "key" in row}
    left = [case for case in cases if keys[case] not in done]
    to_go = sum(_price(case) for case in left)
    print(f"{len(cases)} cases, {len(cases) - len(left)} in {path} already; ", end="")
    print(f"about {to_go * SECONDS_AN_EVALUATION / 60:.0f} min on two quiet cores", flush=True)
    number, began, spent = store.begin(path, rows) if left else 0, time.perf_counter(), 0.0
    for j, case in enumerate(left, len(cases) - len(left) + 1):
        row = {"run": number, "key": keys[case], "case": case.settings(), **_measured(case, bench)}
        store.append(path, row)
        spent += _price(case)
        elapsed = time.perf_counter() - began
        eta = elapsed / spent * (to_go - spent) / 60
        print(f"[{j}/{len(cases)}] {describe(case)}: {_outcome(row)}; {eta:.0f} min left", flush=True)
    return store.read(path)


def plan(cases: Sequence[Case]) -> str:
    """Minutes by group, in evaluations times what one takes."""
    groups = dict.fromkeys(case.group for case in cases)
    minutes = {
        group: sum(_price(c) for c in cases if c.group == group) * SECONDS_AN_EVALUATION / 60 for group in groups
    }
    lines = [f"{group:16}{minutes[group]:6.1f} min, {sum(c.group == group for c in cases)} cases" for group in groups]
    return "\n".join([*lines, f"{'all':16}{sum(minutes.values()):6.1f} min, {len(cases)} cases"])


def describe(case: Case) -> str:
    """A case in words."""
    guidance = "" if case.back == 1 else f", guidance {case.back:g}"
    early = "" if case.model == "emoji64" else f", {case.model}"
    return f"{case.group}: {case.name}, N = {case.steps}, {case.images}, {case.dtype}{guidance}{early}"


def _measured(case: Case, bench: Bench) -> dict[str, Any]:
    return measure(bench.model(case.model), case, bench.encoded(case.model, case.images))


def _outcome(row: store.Row) -> str:
    if "figures" not in row:
        return row["failed"]
    figures = next(iter(row["figures"].values()))
    shown = {"latent_psnr": "latent {:.1f} dB", "noise_error": "noise error {:.3f}", "evaluations": "{:.2f} a step"}
    return ", ".join(text.format(figures[name]) for name, text in shown.items() if figures.get(name) is not None)


def _price(case: Case) -> float:
    return case.price(pictures.count_of(case.images))
