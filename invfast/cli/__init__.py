"""The command line. Results on stdout, everything else on stderr.

Exit codes: 0 done, 1 it could not be done (the message says why), 2 the command was wrong, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from typing import Any


def main() -> None:
    """The console script."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    sys.unraisablehook = _unraisable
    try:
        from invfast.cli.commands import app

        app(prog_name="invfast")
    except KeyboardInterrupt:  # before a command had begun
        os._exit(130)


def __getattr__(name: str) -> Any:
    """`app` is made when it is asked for, so that Ctrl-C ends `main` quietly from its first import on."""
    if name == "app":
        from invfast.cli.commands import app

        return app
    raise AttributeError(f"module 'invfast.cli' has no attribute {name!r}")


def _unraisable(args: Any) -> None:
    """A Ctrl-C that arrived in a destructor is kept elsewhere (`base.stop_if_asked`), and no news."""
    if not issubclass(args.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(args)
