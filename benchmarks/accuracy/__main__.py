"""python -m benchmarks.accuracy [--quick]: measures what has no row yet; `report` makes tables and picture of the rows.

The full run appends to benchmarks/results/accuracy.jsonl, which is committed; the quick one to out/accuracy. Stopped
and started again, either goes on where it was. A row is known by the weights, the images and the settings: after the
model was trained anew everything is measured again.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks import rows
from benchmarks.accuracy import pictures, report, run
from benchmarks.accuracy.cases import cases

ROOT = Path(__file__).parents[2]
COMMITTED = rows.RESULTS / "accuracy.jsonl"
QUICK = ROOT / "out" / "accuracy" / "quick.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accuracy", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", nargs="?", choices=("run", "report"), default="run")
    parser.add_argument("--quick", action="store_true", help="few bundled images, N = 10: at most five minutes")
    parser.add_argument("--rows", type=Path, help="file of rows (default: the committed one, or out/accuracy)")
    parser.add_argument("--runs", type=Path, default=pictures.RUNS, help="where training keeps its downloads")
    parser.add_argument("--plan", action="store_true", help="only print what the run would cost")
    args = parser.parse_args()
    path = args.rows or (QUICK if args.quick else COMMITTED)
    if args.quick and path.resolve() == COMMITTED:
        parser.error("the quick run would replace the committed rows; give it another file")
    chosen = cases(args.quick)
    if args.plan:
        print(run.plan(chosen))
        return
    try:
        if args.command == "run":
            run.run(chosen, path, run.Bench(args.runs))
        # Only committed rows may enter the documentation.
        report.report(path, ROOT if path.resolve() == COMMITTED else None)
    except KeyboardInterrupt:
        sys.exit("interrupted; start it again to go on")
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
