"""Tables and picture of the rows."""

from __future__ import annotations

import io
from typing import Any

from benchmarks import markdown
from benchmarks.watermark.cases import CASES, SCHEMES, STEPS, Case
from invfast.watermark.attacks import ATTACKS

Row = dict[str, Any]
HEAD = (
    "scheme",
    "method",
    "evaluations a step",
    "CPU s an image",
    "error of the noise",
    "ROC area",
    "TPR at 1 % FPR",
    "p <= .01, marked",
    "p <= .01, unmarked",
    "bits right",
)
COLOURS = {"ddim": "#9a9a9a", "auto(budget=1.2)": "#2a78c8", "auto": "#123f6d"}


def tables(found: list[Row]) -> str:
    """Markdown: per case the methods without an attack, then the attacks."""
    parts = []
    for case in CASES:
        own = [row for row in found if row["case"] == case.name]
        if own:
            plain, marked = case.counts("none")
            title = f"**{case.name}**, no attack, {plain} images without and {marked} with each watermark, N = {STEPS}"
            parts.append(f"{title}\n\n{methods([row for row in own if row['attack'] == 'none'])}\n")
        if len(case.methods) > 1:
            plain, marked = case.counts("jpeg")
            parts.append(f"**{case.name}**, under attack, {plain} and {marked} images\n\n{attacks(own)}\n")
    row = found[-1]
    versions = ", ".join(f"{name} {version}" for name, version in row["versions"].items())
    return "\n".join([*parts, f"{row['machine']}; {row['runtime']}; {versions}.\n"])


def methods(found: list[Row]) -> str:
    """A line a scheme and method."""
    lines = []
    for scheme in SCHEMES:
        for row in (each for each in found if each["scheme"] == scheme):
            cost = (f"{row[name]:.2f}" for name in ("evaluations", "cpu_seconds", "error"))
            shares = (f"{row['auc']:.3f}", f"{row['tpr']:.0%}", f"{row['below']:.0%}", f"{row['false']:.1%}")
            lines.append([scheme, row["method"], *cost, *shares, _bits(row)])
    return markdown.table(HEAD, lines)


def attacks(found: list[Row]) -> str:
    """A line a scheme and method, a column an attack: TPR at 1 % FPR, ROC area, bits right."""
    names = [name for name in ATTACKS if name != "none"]
    lines = []
    for scheme in SCHEMES:
        own = {(row["method"], row["attack"]): row for row in found if row["scheme"] == scheme}
        for method in dict.fromkeys(method for method, attack in own if attack != "none"):
            cells = [_cell(own[method, name]) if (method, name) in own else "" for name in names]
            lines.append([scheme, method, *cells])
    return f"TPR at 1 % FPR, ROC area, bits right:\n\n{markdown.table(['scheme', 'method', *names], lines)}"


def _cell(row: Row) -> str:
    bits = f", {_bits(row)}" if _bits(row) else ""
    return f"{row['tpr']:.0%}, {row['auc']:.2f}{bits}"


def _bits(row: Row) -> str:
    return "" if row["bit_accuracy"] is None else f"{row['bit_accuracy']:.0%}"


def picture(found: list[Row]) -> bytes:
    """PNG: above, TPR by attack, a panel a scheme; below, TPR against evaluations without an attack, a panel a case."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 7.4), dpi=90, layout="constrained")
    axes = figure.subplots(2, 3)
    for ax, scheme in zip(axes[0], SCHEMES, strict=True):
        _bars(ax, [row for row in found if row["scheme"] == scheme and row["case"] == CASES[0].name])
        ax.set_title(f"{scheme}, {CASES[0].name}", fontsize=10)
    axes[0][0].set_ylabel("TPR at 1 % FPR")
    for ax, case in zip(axes[1], CASES, strict=True):
        _points(ax, case, [row for row in found if row["case"] == case.name and row["attack"] == "none"])
    axes[1][0].set_ylabel("ROC area, no attack")
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def _bars(ax: Any, found: list[Row]) -> None:
    shown = [method for method in COLOURS if any(row["method"] == method and row["attack"] != "none" for row in found)]
    names = [name for name in ATTACKS if any(row["attack"] == name for row in found)]
    for j, method in enumerate(shown):
        value = {row["attack"]: row["tpr"] for row in found if row["method"] == method}
        at = [i + (j - (len(shown) - 1) / 2) * 0.4 for i, name in enumerate(names) if name in value]
        heights = [value[name] for name in names if name in value]
        ax.bar(at, heights, 0.38, label=method, color=COLOURS[method])
    ax.set_xticks(range(len(names)), names, rotation=30, fontsize=9)
    ax.set_ylim(0, 1.25)  # room for the legend
    ax.legend(fontsize=8)


def _points(ax: Any, case: Case, found: list[Row]) -> None:
    for scheme, marker in zip(SCHEMES, "os^", strict=True):
        own = [row for row in found if row["scheme"] == scheme]
        x, y = ([row[name] for row in own] for name in ("evaluations", "auc"))
        ax.plot(x, y, marker, label=scheme, alpha=0.8)
    named = sorted(
        (row for row in found if row["scheme"] == "tree_ring"), key=lambda row: (row["evaluations"], row["auc"])
    )
    for j, row in enumerate(named):  # below, but where the one below is as near as its name is high
        near = j and row["evaluations"] == named[j - 1]["evaluations"] and row["auc"] - named[j - 1]["auc"] < 0.01
        where = (row["evaluations"], row["auc"])
        ax.annotate(row["method"], where, (4, 5 if near else -11), textcoords="offset points", fontsize=7)
    ax.set_title(case.name, fontsize=10)
    ax.set_xlabel("evaluations a step")
    ax.margins(0.25)
    ax.legend(fontsize=8)
