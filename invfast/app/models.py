"""The pipelines of the page: each is loaded once and shared, and nothing is written to it but its progress bar."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch

from invfast import demo, loading
from invfast.app import jobs

BUNDLED: dict[str, Callable[[], Any]] = {
    "emoji64": demo.load_pipeline,
    "emoji64-flow": demo.load_flow_pipeline,
    "emoji64-early": lambda: demo.load_pipeline(early=True),
    "emoji32": demo.load_pixel_pipeline,
}
"""The bundled pipelines by the names of their folders."""


class Models:
    """Pipelines by name.

    Args:
        given: those that the server was started with, folders or hub ids; the first is the default.
        device: of all of them; None is cuda where there is one, else cpu.
        closed: whether a visitor may name no other than these and the bundled ones, for a name makes the server read
            its disk or reach for the hub.
    """

    def __init__(self, given: Sequence[str] = (), device: str | None = None, closed: bool = False) -> None:
        self.names = list(dict.fromkeys([*given, *BUNDLED]))
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.closed = closed
        self._kept: dict[str, Any] = {}
        self._loading = threading.Lock()

    def get(self, name: str | None) -> Any:
        """The pipeline of a name; "" or None is the default. Of those a visitor named the last is kept.

        Raises:
            ValueError: a name that the server was not started with, where no other may be named.
            OSError: no such pipeline, as `loading.load` says.
        """
        name = (name or "").strip() or self.names[0]
        if self.closed and name not in self.names:
            raise ValueError(
                f"model {name!r} is none of {', '.join(self.names)}; as others can reach this server, it loads no "
                "folder or hub id but those it was started with: invfast app --model ..."
            )
        with self._loading:
            if name not in self._kept:
                jobs.say(f"loading {name}")
                pipe = BUNDLED[name]().to(self.device) if name in BUNDLED else loading.load(name, self.device)
                pipe.progress_bar = jobs.passing
                self._kept = {each: kept for each, kept in self._kept.items() if each in self.names}
                self._kept[name] = pipe
            return self._kept[name]
