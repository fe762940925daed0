"""The tab "Invert": one image, its noise, and what it is rebuilt as."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from invfast.app import work
from invfast.app.jobs import Jobs
from invfast.app.parts import Fields, buttons, picture, place, table, wire


def inverting(jobs: Jobs, fields: Fields) -> None:
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            image = picture("Image", height=300)
            prompt = fields.prompt()
            pair = buttons("Invert")
        with gr.Column(scale=3, min_width=400):
            slider = gr.ImageSlider(label="Image and reconstruction", format="png", interactive=False, max_height=520)
        with gr.Column(scale=2, min_width=280):
            noise = gr.Image(label="Noise", format="png", interactive=False, height=220, buttons=["download"])
            figures = gr.HTML()
            file = gr.DownloadButton("Download the inversion", interactive=False)

    def run(path: str | None, prompt: str, *settings: Any) -> tuple[Any, ...]:
        found = work.invert(fields.read(*settings), path, prompt)
        target = place(file, f"{Path(path).stem}.safetensors")
        found.inversion.save(target)
        pictures = work.shown(found.source), work.shown(found.rebuilt)
        ready = gr.DownloadButton(value=str(target), interactive=True)
        return pictures, work.shown(found.noise), table(found.rows), ready

    wire(jobs, "invert", pair, run, [image, prompt, *fields.inputs], [slider, noise, figures, file])
