"""The tabs "Compare", "Edit" and "Interpolate": images in, pictures out."""

from __future__ import annotations

from typing import Any

import gradio as gr

from invfast import figures
from invfast.app import work
from invfast.app.jobs import Jobs
from invfast.app.parts import Fields, buttons, picture, place, table, wire
from invfast.compare import COLUMNS
from invfast.editing import EDITORS
from invfast.methods import METHODS


def comparing(jobs: Jobs, fields: Fields) -> None:
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            image = picture("Image", height=300)
            prompt = fields.prompt()
            methods = gr.Dropdown(
                list(METHODS),
                value=["ddim", "easyinv", "auto"],
                label="Methods",
                info="In place of the one above.",
                multiselect=True,
                allow_custom_value=True,
            )
            pair = buttons("Compare")
        with gr.Column(scale=5, min_width=500):
            grid = gr.Image(show_label=False, format="png", interactive=False, buttons=["download"])
            rows = gr.HTML()
            file = gr.DownloadButton("Download the table", interactive=False)

    def run(path: str | None, prompt: str, methods: list[str], *settings: Any) -> tuple[Any, ...]:
        found = work.compare(fields.read(*settings), path, prompt, list(map(str, methods or ())))
        target = place(file, "compare.csv")
        target.write_text(found.table(".csv"), encoding="utf-8")
        meanings = "".join(f"<br>{short}: {meaning}" for short, meaning in COLUMNS.values())
        titles = ("method", *(short for short, _ in COLUMNS.values()))
        text = f"{table(found.texts(), titles)}<small>{meanings}</small>"
        return found.picture, text, gr.DownloadButton(value=str(target), interactive=True)

    wire(jobs, "compare", pair, run, [image, prompt, methods, *fields.inputs], [grid, rows, file])


def editing(jobs: Jobs, fields: Fields) -> None:
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            image = picture("Image", height=240)
            prompt = fields.prompt()
            target = fields.prompt("New prompt", "What it is to show.")
            editor = gr.Dropdown(list(EDITORS), value="prompt_to_prompt", label="Editor")
            guidance = gr.Slider(1, 15, 5, step=0.5, label="Guidance")
            with gr.Accordion("More", open=False):
                negative = fields.prompt("Negative prompt", "What it is not to show.")
                mask = picture("Mask, white where the image may change", height=180)
                style = picture("Style, for the editor portrait", height=180)
                style_prompt = fields.prompt("Prompt of the style", "What that image shows.")
            pair = buttons("Edit")
        with gr.Column(scale=3, min_width=400):
            slider = gr.ImageSlider(label="Image and edit", format="png", interactive=False, max_height=512)
        with gr.Column(scale=2, min_width=280):
            rows = gr.HTML()

    def run(path: str | None, prompt: str, *values: Any) -> tuple[Any, ...]:
        asked, settings = values[: -len(fields.inputs)], values[-len(fields.inputs) :]
        source, edited, found = work.edit(fields.read(*settings), path, prompt, work.Asked(*asked))
        return (work.shown(source), work.shown(edited)), table(found)

    inputs = [image, prompt, target, editor, guidance, negative, mask, style, style_prompt, *fields.inputs]
    wire(jobs, "edit", pair, run, inputs, [slider, rows])


def interpolating(jobs: Jobs, fields: Fields) -> None:
    with gr.Row():
        with gr.Column(scale=1, min_width=240):
            first = picture("First image", height=240)
            prompt = fields.prompt("Its prompt")
        with gr.Column(scale=1, min_width=240):
            second = picture("Second image", height=240)
            other = fields.prompt("Its prompt")
        with gr.Column(scale=1, min_width=240):
            count = gr.Slider(2, 15, 7, step=1, label="Pictures", info="Both ends among them.")
            pair = buttons("Interpolate")
            moving = gr.Image(label="Moving", interactive=False, height=200, buttons=["download"])
    strip = gr.Image(label="From one to the other", format="png", interactive=False, buttons=["download"])

    def run(a: str | None, b: str | None, of_a: str, of_b: str, count: float, *settings: Any) -> tuple[Any, ...]:
        pictures = work.interpolate(fields.read(*settings), (a, b), (of_a, of_b), int(count))
        target = place(moving, "moving.gif")
        figures.save([work.shown(each) for each in pictures], target)
        return figures.strip(pictures, max(160, *pictures[0].size)), str(target)

    wire(jobs, "interpolate", pair, run, [first, second, prompt, other, count, *fields.inputs], [strip, moving])
