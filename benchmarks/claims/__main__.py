"""python -m benchmarks.claims [STUDY ...] [--quick]: what two papers claim, measured again on the bundled models.

There and Back Again (arXiv 2410.23530) is measured on images drawn from known noise; EasyInv (arXiv 2408.05159) from
the rows of `make accuracy` and `python -m benchmarks.edits`. Studies are

    easyinv   EasyInv's claims, from committed rows
    masactrl  its figure of edits, one column a method
    steps     what is predicted at each step, and steps swapped for what was right
    edits     how far edits go, and how much they differ
    latents   correlation, normality, plain areas, geometry of what each method finds: most of the time
    between   what is drawn between two latents, and between noise and latent

and without a name all of them, up to two hours on two cores. Every shard is kept in out/claims and never made again, so
a run that was stopped goes on; --shard 1/3 makes only every third, on as many machines as there are, and the run
without it puts them together. Rows: benchmarks/results/claims.jsonl; verdicts: docs/claims.md; all of it:
out/claims/claims.html.
--quick asks little of small numbers, in minutes, writes to out/claims/quick and changes no document.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks import markdown
from benchmarks import rows as committed
from benchmarks.claims import between, charts, easyinv, edits, latents, masactrl, report, steps
from benchmarks.claims.shards import Shards
from benchmarks.claims.subjects import QUICK, SUBJECTS, Subject
from benchmarks.markdown import DOCS
from invfast.files import write_atomically

OUT = DOCS.parent / "out" / "claims"
COMMITTED = committed.RESULTS / "claims.jsonl"
Rows = Callable[[Any], Iterator[dict[str, Any]]]
STUDIES: dict[str, tuple[Rows, tuple[str, ...]]] = {
    "easyinv": (easyinv.rows, ("latent",)),
    "masactrl": (masactrl.rows, ("latent",)),
    "steps": (steps.rows, ("pixel", "latent", "flow")),
    "edits": (edits.rows, ("latent",)),
    "latents": (latents.rows, ("pixel", "latent", "flow")),
    "between": (between.rows, ("pixel",)),
}
"""What makes the rows of each, and of which models."""
SHARDED: dict[str, tuple[int, tuple[str, ...]] | None] = {
    "latents": None,
    "between": (between.MOST, between.WAYS),
    "edits": (1, edits.WAYS),
}
"""Studies of inversions that are kept: of how many shards and by which methods, None of all."""


def measured(name: str, subjects: tuple[Subject, ...], folder: Path) -> Iterator[dict[str, Any]]:
    """Rows of a study, as they come."""
    make, models = STUDIES[name]
    for subject in (each for each in subjects if each.name in models):
        for row in make(Shards(subject, folder)):
            yield {"study": name, "model": subject.name, **row, **committed.place()}
        print(f"  {name}, {subject.name}: done", file=sys.stderr, flush=True)


def prepare(name: str, subjects: tuple[Subject, ...], folder: Path, share: tuple[int, int]) -> None:
    """Makes every shard of a share that a study asks for and that is not there yet."""
    for subject in (each for each in subjects if name in SHARDED and each.name in STUDIES[name][1]):
        shards, methods = Shards(subject, folder), subject.methods()
        most, ways = SHARDED[name] or (subject.shards, tuple(methods))
        for j in range(share[0] - 1, min(most, subject.shards), share[1]):
            for way in ways:
                shards.inverted(j, methods[way])
            print(f"  {subject.name}, shard {j + 1} of {subject.shards}", file=sys.stderr, flush=True)


def merge(path: Path, name: str, found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Puts a study's rows in place of those it had in a file; all rows of the file."""
    lines = path.read_text().splitlines() if path.exists() else []
    found = [*(row for row in map(json.loads, lines) if row["study"] != name), *found]
    found.sort(key=lambda row: list(STUDIES).index(row["study"]))
    path.parent.mkdir(parents=True, exist_ok=True)
    committed.write(path, found)
    return found


def share_of(text: str) -> tuple[int, int]:
    """ "2/3" as numbers."""
    part, _, of = text.partition("/")
    if not (part.isdecimal() and of.isdecimal() and 1 <= int(part) <= int(of)):
        raise argparse.ArgumentTypeError(f"expected K/M with K from 1 to M, got {text!r}")
    return int(part), int(of)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.claims", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", nargs="*", help=f"{', '.join(STUDIES)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="small numbers")
    parser.add_argument("--shard", type=share_of, metavar="K/M", help="only make this share of the shards")
    args = parser.parse_args()
    unknown = [name for name in args.study if name not in STUDIES]
    if unknown:
        parser.error(f"unknown study {unknown[0]!r}; expected some of {', '.join(STUDIES)}")
    names, folder, path = args.study or list(STUDIES), OUT, COMMITTED
    subjects = QUICK if args.quick else SUBJECTS
    if args.quick:
        folder, path = OUT / "quick", OUT / "quick" / "claims.jsonl"
    try:
        for name in names:
            prepare(name, subjects, folder, args.shard or (1, 1))
            if not args.shard:
                found = merge(path, name, list(measured(name, subjects, folder)))
                print(f"{report.shown(name, found)}\n", flush=True)
    except KeyboardInterrupt:
        sys.exit("interrupted; start it again to go on")
    if not args.shard:
        publish(found, subjects, folder, None if args.quick else DOCS)


def publish(found: list[dict[str, Any]], subjects: tuple[Subject, ...], folder: Path, docs: Path | None) -> None:
    """Verdicts on stdout and in the documentation, all of it as one HTML file."""
    print(report.markdown(found))
    pictures = charts.drawn(found)
    latent = next(each for each in subjects if each.name == "latent")
    pictures["MasaCtrl, one column an inversion"] = masactrl.picture(Shards(latent, folder))
    html = folder / "claims.html"
    write_atomically(html, report.page(found, pictures).encode())
    print(f"report: {html}")
    if docs is not None:
        markdown.write(docs / "claims.md", "claims", f"{report.markdown(found)}\n")
        charts.save(pictures, docs)


if __name__ == "__main__":
    main()
