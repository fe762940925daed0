"""A report as one HTML file that needs no other: tables, and figures inside it."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from html import escape

from invfast.analysis import figures
from invfast.analysis.report import ENOUGH, Report, Row

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse } th, td { padding: .2rem .8rem; border-bottom: 1px solid #ccc; text-align: right }
th:nth-child(-n + 2), td:nth-child(-n + 2), th:last-child, td:last-child { text-align: left } img { max-width: 48% }
"""
HEAD = ("subject", "figure", "latents", "noise", "permuted", "clean")


def page(reports: Mapping[str, Report]) -> str:
    """Reports by title, as HTML.

    Raises:
        ImportError: matplotlib is missing.
    """
    body = "".join(f"<h2>{escape(title)}</h2>\n{_section(report)}" for title, report in reports.items())
    return (
        '<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>invfast analyze</title>'
        f"<style>{STYLE}</style>\n<h1>Are these latents noise?</h1>\n<p>Each figure stands beside the same of Gaussian "
        f"noise of the same number, and of the latents permuted.</p>\n{body}</html>\n"
    )


def cells(row: Row) -> tuple[str, ...]:
    """A row as texts, in the order of HEAD."""
    return row.subject, row.figure, *(number(v) for v in (row.latents, row.noise, row.permuted)), row.clean


def number(value: float | None) -> str:
    """Four digits after the point, or four in all; integers as they are, nothing for None."""
    if value is None:
        return ""
    if isinstance(value, int):
        return str(value)
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.4g}"


def notes(report: Report) -> list[str]:
    """What a reader should know before trusting the table."""
    few = "correlation" in report.found and report.n < ENOUGH
    small = [f"correlation of fewer than {ENOUGH:,} latents is mostly chance: read it against the noise"] if few else []
    return [*small, *(f"{subject} left out: {why}" for subject, why in report.skipped.items())]


def _section(report: Report) -> str:
    head = "".join(f"<th>{name}</th>" for name in HEAD)
    rows = "".join(f"<tr>{''.join(f'<td>{escape(text)}</td>' for text in cells(row))}</tr>\n" for row in report.rows)
    said = "".join(f"<p>{escape(note)}</p>\n" for note in notes(report))
    pictures = "".join(_picture(name, figure) for name, figure in figures.draw(report).items())
    return f"<table><tr>{head}</tr>\n{rows}</table>\n{said}{pictures}\n"


def _picture(name: str, figure: object) -> str:
    content = base64.b64encode(figures.rendered(figure, ".png")).decode()
    return f'<img alt="{name}" src="data:image/png;base64,{content}">\n'
