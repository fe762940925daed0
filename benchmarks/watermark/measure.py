"""Rows: every group of images inverted once a method and attack, its latents scored by every scheme."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from scipy import stats

from benchmarks import rows
from benchmarks.watermark.cases import (
    CASES,
    DECODER,
    FOLDER,
    KEYS,
    SCHEMES,
    SHORT,
    STEPS,
    Case,
    Images,
    keys,
    load,
    make,
)
from invfast import adapters, invert
from invfast.adapters.decoder_inversion import DecoderInversion, refined
from invfast.digests import tensor_digest
from invfast.files import write_atomically
from invfast.methods.spelling import parse
from invfast.watermark import Score, score
from invfast.watermark.attacks import ATTACKS

FPR = 0.01
BATCH = 8
RUNTIME = "openvino" if importlib.util.find_spec("openvino") else "eager"
NAMES = ("case", "scheme", "attack", "method", "plain", "marked", "steps")
"""What a row is known by."""


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a file; a last line that was cut off is left out."""
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def shards() -> Iterator[tuple[Case, str, str]]:
    """(case, attack, method), in the order they are measured."""
    every = [(case, attack, method) for case in CASES for attack in case.methods for method in case.methods[attack]]
    # What says most comes first.
    yield from sorted(every, key=lambda shard: (shard[2] not in SHORT, shard[1] != "none"))


def known_by(case: Case, scheme: str, attack: str, method: str) -> dict[str, Any]:
    plain, marked = case.counts(attack)
    return dict(zip(NAMES, (case.name, scheme, attack, method, plain, marked, STEPS), strict=True))


def wanted(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows that are asked for, the newest of each, in order."""
    newest = {tuple(row[name] for name in NAMES): row for row in found}
    asked = (tuple(known_by(*shard[:1], scheme, *shard[1:]).values()) for shard in shards() for scheme in SCHEMES)
    return [newest[each] for each in asked if each in newest]


def run(path: Path) -> None:
    """Measures what has no row yet; each shard's rows are written when it is done."""
    path.parent.mkdir(parents=True, exist_ok=True)
    done = {tuple(row[name] for name in NAMES) for row in read(path)}
    benches: dict[str, Bench] = {}
    for case, attack, method in shards():
        if all(tuple(known_by(case, scheme, attack, method).values()) in done for scheme in SCHEMES):
            continue
        if case.name not in benches:
            benches[case.name] = Bench(case)
        found = benches[case.name].measured(attack, method)
        with path.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in found)
        for row in found:
            print(*(row[name] for name in ("case", "attack", "method", "scheme", "auc", "tpr")), flush=True)


class Bench:
    """One case: its pipeline, images and keys."""

    def __init__(self, case: Case) -> None:
        self.case, self.pipe = case, load(case)
        self.images = {name: make(case, self.pipe, name, RUNTIME) for name in (None, *SCHEMES)}
        self.keys = {scheme: keys(scheme, self.pipe) for scheme in SCHEMES}
        self.decoded: dict[Any, torch.Tensor] = {}

    def measured(self, attack: str, method: str) -> list[dict[str, Any]]:
        """A row a scheme."""
        found = {name: self.inverted(name, attack, method) for name in self.images}
        evaluations, seconds, count = (sum(each[1][j] for each in found.values()) for j in range(3))
        shared = {"evaluations": evaluations / count / STEPS, "cpu_seconds": seconds / count, "runtime": RUNTIME}
        every = []
        for scheme, own in self.keys.items():
            plain = [one for key in own for one in score(found[None][0], key)]
            marked = [score(x[None], own[j % KEYS])[0] for j, x in enumerate(found[scheme][0])]
            figures = {**judged(plain, marked), "error": self.error(scheme, found[scheme][0])}
            every.append({**known_by(self.case, scheme, attack, method), **figures, **shared, **rows.place()})
        return every

    def inverted(self, name: str | None, attack: str, method: str) -> tuple[torch.Tensor, tuple[int, float, int]]:
        """Latents (n, C, h, w), and (evaluations, seconds of CPU time, images); kept in out/watermark like images."""
        images, count = self.images[name], self.case.counts(attack)[name is not None]
        known = f"{tensor_digest(images.noise)} {self.case.name} {attack} {method} {STEPS} {count}"
        file = FOLDER / f"{hashlib.sha256(known.encode()).hexdigest()[:16]}.safetensors"
        if not file.exists():
            found = [
                self.batch(images, attack, method, slice(start, min(start + BATCH, count)))
                for start in range(0, count, BATCH)
            ]
            latents, *spent = zip(*found, strict=True)
            tensors = {"latents": torch.cat(latents), "spent": torch.tensor([sum(each) for each in spent])}
            write_atomically(file, save(tensors))
        tensors = load_file(file)
        evaluations, seconds = tensors["spent"].tolist()
        return tensors["latents"], (evaluations, seconds, count)

    def batch(self, images: Images, attack: str, method: str, part: slice) -> tuple[torch.Tensor, int, float]:
        """Latents of some images, evaluations, seconds of CPU time."""
        encoded = self.encode(images, attack, part, method.endswith(DECODER))
        prompts = images.prompts[part] if self.case.prompted else ""
        how = {"method": parse(method.removesuffix(DECODER)), "num_inference_steps": STEPS, "runtime": RUNTIME}
        began = time.process_time()  # others may use the machine too
        found = invert(self.pipe, encoded, prompts, **how)
        return found.latents, sum(found.stats.evaluations), time.process_time() - began

    def encode(self, images: Images, attack: str, part: slice, decoder: bool) -> torch.Tensor:
        """The encoder's latents, or the decoder's, which are made once: they cost more than the inversion."""
        key = (id(images), attack, part.start)
        if not decoder or key not in self.decoded:
            model = adapters.resolve(self.pipe)(self.pipe)
            with model.session():
                found = model.encode(attacked(images, attack, part), None, None)
                if not decoder:
                    return found
                self.decoded[key], _ = refined(model, found, DecoderInversion())
        return self.decoded[key]

    def error(self, scheme: str, latents: torch.Tensor) -> float:
        """Mean relative error of the noise, |x - x_T| / |x_T|."""
        true = self.images[scheme].noise[: len(latents)]
        return float(((latents - true).flatten(1).norm(dim=1) / true.flatten(1).norm(dim=1)).mean())


def attacked(images: Images, attack: str, part: slice) -> list[Any]:
    return [ATTACKS[attack](image, part.start + j) for j, image in enumerate(images.pictures[part])]


def judged(plain: list[Score], marked: list[Score]) -> dict[str, Any]:
    """Figures of images without a watermark, and of those with one; ranked by p, for keys differ in their distances."""
    without, with_it = ([-one.p_value for one in each] for each in (plain, marked))
    above = sorted(without, reverse=True)[int(FPR * len(without))]
    accuracy = [one.bit_accuracy for one in marked if one.bit_accuracy is not None]
    return {
        "auc": float(stats.mannwhitneyu(with_it, without).statistic) / len(without) / len(with_it),
        "tpr": sum(one > above for one in with_it) / len(with_it),
        "below": sum(one.p_value <= FPR for one in marked) / len(marked),
        "false": sum(one.p_value <= FPR for one in plain) / len(plain),
        "bit_accuracy": sum(accuracy) / len(accuracy) if accuracy else None,
    }
