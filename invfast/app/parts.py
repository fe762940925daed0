"""What the tabs are made of: fields for pictures and files, buttons that run and cancel, tables, errors in words."""

from __future__ import annotations

import re
import tempfile
import warnings
from collections.abc import Callable, Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from invfast.app.jobs import Cancelled, Jobs
from invfast.app.models import Models
from invfast.app.work import LARGEST, Settings
from invfast.methods import METHODS
from invfast.methods.spelling import parse

FAILURES = (ArithmeticError, ImportError, LookupError, OSError, RuntimeError, TypeError, ValueError)
"""What the library raises, and says why."""
UPLOADED = re.compile(r"[^'\"\s]*/[0-9a-f]{32,}/")
"""The folder of an uploaded file, which says nothing to who uploaded it."""


def picture(label: str, **more: Any) -> gr.Image:
    """A field for an image, a path: `images.load` is the first to open it, not gradio, which tries all of Pillow's
    formats.
    """
    field = gr.Image(label=label, sources=["upload", "clipboard"], type="filepath", elem_classes="filled", **more)
    field.preprocess = lambda payload: payload and payload.path
    return _uploaded(field)


def files(label: str, kinds: Sequence[str], **more: Any) -> gr.File:
    """A field for files, a list of paths."""
    return _uploaded(gr.File(label=label, file_count="multiple", file_types=list(kinds), type="filepath", **more))


def _uploaded(field: gr.components.Component) -> Any:
    """A field whose files come by upload alone: gradio's own also fetches an address that a client names.

    Changed where it is, for gradio writes a file beside each module that has a class of fields.
    """
    move = field.async_move_resource_to_block_cache

    async def moved(path: Any) -> str | None:
        if path is not None and not Path(path).is_file():
            raise gr.Error("A file is uploaded, not named by its address.", print_exception=False)
        return await move(path)

    field.async_move_resource_to_block_cache = moved
    return field


class Fields:
    """The settings above all tabs, and what their values mean.

    Args:
        models: the pipelines.
        runtime: where networks run.
    """

    def __init__(self, models: Models, runtime: str) -> None:
        self.models, self.runtime = models, runtime
        where = "One of these." if models.closed else "A bundled one, a folder, or a hub id."
        with gr.Row(equal_height=True):
            self.inputs = [
                gr.Dropdown(models.names, label="Model", info=where, allow_custom_value=True, scale=3),
                gr.Dropdown(
                    list(METHODS),
                    value="auto",
                    label="Method",
                    info="A name, or with settings: auto(budget=1.2)",
                    allow_custom_value=True,
                    scale=3,
                ),
                gr.Slider(1, 200, 50, step=1, label="Steps", info="Of the grid, from image to noise.", scale=3),
                gr.Number(
                    label="Size",
                    info="0: the model's own.",
                    value=0,
                    precision=0,
                    minimum=0,
                    maximum=LARGEST,
                    scale=2,
                ),
            ]

    @staticmethod
    def prompt(label: str = "Prompt", info: str = "What the image shows, if you like.") -> gr.Textbox:
        """A field for a text."""
        return gr.Textbox(label=label, info=info, max_length=2000)

    def read(self, model: str, method: str, steps: float, side: float | None) -> Settings:
        """The values of the fields; the model is loaded where it is not."""
        chosen = parse(str(method or ""))
        return Settings(
            self.models.get(str(model or "")), chosen, int(steps), int(side) if side else None, self.runtime
        )


def buttons(what: str) -> tuple[gr.Button, gr.Button]:
    """One that runs, and one that cancels."""
    with gr.Row():
        return gr.Button(what, variant="primary", scale=3), gr.Button("Cancel", scale=1, min_width=100)


def wire(
    jobs: Jobs,
    name: str,
    pair: tuple[gr.Button, gr.Button],
    work: Callable[..., Any],
    inputs: Sequence[gr.components.Component],
    outputs: Sequence[gr.components.Component],
) -> None:
    """Connects a pair of buttons; a tab has one job at a time.

    Args:
        jobs: of the page.
        name: of the tab.
        pair: of `buttons`.
        work: given the values of the inputs, returns those of the outputs.
        inputs: fields.
        outputs: fields; how far it is shows on the first.
    """

    def announce(request: gr.Request) -> gr.Button:
        jobs.announce(request.session_hash, name)
        return gr.Button(interactive=False)

    def cancel(request: gr.Request) -> None:
        jobs.cancel(request.session_hash, name)

    def compute(request: gr.Request, progress: gr.Progress = gr.Progress(), *values: Any) -> Any:  # noqa: B008
        def report(step: int, steps: int, doing: str) -> None:
            progress((step, steps), desc=doing)

        try:
            with jobs.running(request.session_hash, name, report), warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                found = work(*values)
        except Cancelled:
            gr.Info("Cancelled.")
            return gr.skip() if len(outputs) == 1 else [gr.skip() for _ in outputs]
        except FAILURES as error:
            raise gr.Error(words(error), duration=30, print_exception=False) from None
        for each in said:
            if each.category is UserWarning:
                gr.Warning(words(each.message))
        return found

    run, stop = pair
    quiet = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    one = {"concurrency_id": "compute", "concurrency_limit": 1, "api_visibility": "private"}
    begun = run.click(announce, None, run, **quiet)
    ended = begun.then(compute, list(inputs), list(outputs), show_progress_on=outputs[0], **one)
    for after in (ended.success, ended.failure):  # `then` is not called where it failed
        after(lambda: gr.Button(interactive=True), None, run, **quiet)
    stop.click(cancel, **quiet)


def words(error: BaseException) -> str:
    """What an error or a warning says, as HTML without any of its own: it may quote what a visitor wrote."""
    said = error.args[0] if isinstance(error, KeyError) and error.args else error
    return escape(UPLOADED.sub("", str(said)))


def table(rows: Iterable[Sequence[str]], head: Sequence[str] = ()) -> str:
    """Rows of texts as HTML."""
    top = f"<tr>{''.join(f'<th>{escape(each)}</th>' for each in head)}</tr>" if head else ""
    body = "".join(f"<tr>{''.join(f'<td>{escape(text)}</td>' for text in row)}</tr>" for row in rows)
    return f'<table class="figures">{top}{body}</table>'


def place(field: gr.components.Component, name: str) -> Path:
    """Where a file may be written that a field is to show; nobody guesses it, and it goes with the field's own."""
    path = Path(tempfile.mkdtemp(dir=field.GRADIO_CACHE)) / name
    field.temp_files.add(str(path))
    return path
