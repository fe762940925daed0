"""Does better inversion detect more watermarks, and at what price? python -m benchmarks.watermark [run|report]

Images of the bundled models with a Tree-Ring, a Gaussian Shading or a RingID key, and without; saved as 8 bits,
attacked, inverted by several methods, scored. Goes on where it was stopped. Rows: benchmarks/results/watermark.jsonl;
tables: docs/watermark.md; picture: docs/watermark.png.
"""

from __future__ import annotations

import argparse

from benchmarks import markdown, rows
from benchmarks.markdown import DOCS
from benchmarks.watermark import measure
from benchmarks.watermark.report import picture, tables
from invfast.files import write_atomically

FILE = rows.RESULTS / "watermark.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.watermark", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", nargs="?", choices=("run", "report"), default="run")
    if parser.parse_args().command == "run":
        measure.run(FILE)
    found = measure.wanted(measure.read(FILE))
    markdown.write(DOCS / "watermark.md", "watermark", f"{tables(found)}")
    write_atomically(DOCS / "watermark.png", picture(found))


if __name__ == "__main__":
    main()
