"""The page: settings on top, a tab for each thing that can be done."""

from __future__ import annotations

import gradio as gr

from invfast.app.checking import analysing, detecting, embedding
from invfast.app.comparing import comparing, editing, interpolating
from invfast.app.inverting import inverting
from invfast.app.jobs import Jobs
from invfast.app.models import Models
from invfast.app.parts import Fields

SYSTEM, MONOSPACED = ("system-ui", "sans-serif"), ("ui-monospace", "monospace")
"""Fonts that are there: the page asks nobody for others."""
STYLE = """
.figures { width: 100%; border: 0 !important; border-collapse: collapse; font-variant-numeric: tabular-nums }
.figures th, .figures td { border: 0 !important; padding: .3rem .5rem !important; text-align: left }
.figures tr { border: 0 !important; border-bottom: 1px solid var(--border-color-primary) !important }
.filled img { width: 100%; height: 100%; object-fit: contain }
"""


def theme() -> gr.themes.Base:
    return gr.themes.Default(font=SYSTEM, font_mono=MONOSPACED).set(block_info_text_color="*neutral_500")


def page(models: Models, runtime: str) -> gr.Blocks:
    """The page, ready to be launched.

    Args:
        models: the pipelines.
        runtime: where their networks run.
    """
    jobs = Jobs()

    def left(request: gr.Request) -> None:
        jobs.cancel(request.session_hash)

    with gr.Blocks(title="invfast", analytics_enabled=False, delete_cache=(3600, 86400)) as blocks:
        gr.Markdown("# invfast\nFind the noise that a diffusion model regenerates an image from.")
        fields = Fields(models, runtime)
        with gr.Tab("Invert"):
            inverting(jobs, fields)
        with gr.Tab("Compare"):
            comparing(jobs, fields)
        with gr.Tab("Edit"):
            editing(jobs, fields)
        with gr.Tab("Interpolate"):
            interpolating(jobs, fields)
        with gr.Tab("Analyse"):
            analysing(jobs)
        with gr.Tab("Watermark"):
            with gr.Tab("Detect"):
                detecting(jobs, fields)
            with gr.Tab("Embed"):
                embedding(jobs, fields)
        blocks.unload(left)
    return blocks
