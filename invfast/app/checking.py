"""The tabs "Analyse" and "Watermark": files in, verdicts out."""

from __future__ import annotations

from html import escape
from typing import Any

import gradio as gr

from invfast import figures
from invfast.analysis import page
from invfast.app import uploads
from invfast.app.jobs import Jobs
from invfast.app.parts import Fields, buttons, files, place, table, wire

IMAGES = (".png", ".jpg", ".jpeg", ".webp")


def analysing(jobs: Jobs) -> None:
    gr.Markdown("Whether the latents of saved inversions are noise: each figure beside that of true noise.")
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            given = files("Inversions", [".safetensors"])
            pair = buttons("Analyse")
            file = gr.DownloadButton("Download the report", interactive=False)
        with gr.Column(scale=5, min_width=500):
            rows = gr.HTML(min_height=120)

    def run(paths: list[str] | None) -> tuple[Any, ...]:
        reports = uploads.analyse(paths)
        target = place(file, "report.html")
        target.write_text(page.page(reports), encoding="utf-8")
        text = ""
        for title, report in reports.items():
            notes = "".join(f"<br>{escape(note)}" for note in page.notes(report))
            text += f"<h3>{escape(title)}</h3>{table(map(page.cells, report.rows), page.HEAD)}<small>{notes}</small>"
        return text, gr.DownloadButton(value=str(target), interactive=True)

    wire(jobs, "analyse", pair, run, [given], [rows, file])


def detecting(jobs: Jobs, fields: Fields) -> None:
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            given, keys = files("Images", IMAGES), files("Keys", [".json"])
            prompt = fields.prompt(info="What the images show, where that is known.")
            fpr = gr.Number(
                0.01, label="False positives", info="Share of images without a watermark that may be taken for one."
            )
            pair = buttons("Look for the keys")
        with gr.Column(scale=5, min_width=500):
            rows = gr.HTML(min_height=120)

    def run(paths: list[str] | None, keys: list[str] | None, prompt: str, fpr: float | None, *settings: Any) -> str:
        found = uploads.detect(fields.read(*settings), paths, keys, prompt, fpr or 0)
        return table(found, ("image", "found", "p", "bits of the message"))

    wire(jobs, "detect", pair, run, [given, keys, prompt, fpr, *fields.inputs], [rows])


def embedding(jobs: Jobs, fields: Fields) -> None:
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            key, prompt = files("Key", [".json"]), fields.prompt(info="What the images are to show.")
            count = gr.Slider(1, 16, 1, step=1, label="Images")
            seed = gr.Number(0, label="Seed", info="Of the first image; the next has the next.", precision=0, minimum=0)
            guidance = gr.Slider(1, 15, 7.5, step=0.5, label="Guidance")
            pair = buttons("Draw")
        with gr.Column(scale=5, min_width=500):
            gallery = gr.Gallery(label="Images with the watermark", format="png", interactive=False, columns=4)

    def run(
        key: list[str] | None, prompt: str, count: float, seed: float | None, guidance: float, *settings: Any
    ) -> list[tuple[str, str]]:
        made = uploads.embed(fields.read(*settings), key, prompt, int(count), int(seed or 0), guidance)
        targets = {name: place(gallery, f"{name}.png") for name in made}
        for name, picture in made.items():
            figures.save(picture, targets[name])
        return [(str(target), name) for name, target in targets.items()]

    wire(jobs, "embed", pair, run, [key, prompt, count, seed, guidance, *fields.inputs], [gallery])
