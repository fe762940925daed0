"""The tables of the report, each a function of rows to Markdown; empty where there is no row for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from benchmarks.accuracy.pictures import PLAIN
from benchmarks.accuracy.store import Row
from benchmarks.markdown import table

COLUMNS = {
    "evaluations": ("evaluations a step", 2),
    "latent_psnr": ("latent PSNR", 1),
    "worst": ("worst image", 1),
    "psnr_to_vae": ("image to VAE", 1),
    "psnr": ("image to original", 1),
    "ssim": ("SSIM", 3),
    "gain": ("gain on x_0", 3),
    "midpoint": ("midpoint error", 3),
    "noise_std": ("x_T std", 2),
    "noise_kurtosis": ("kurtosis", 1),
}
HEADLINE = (
    "DDIM",
    "EasyInv",
    "forward start 2",
    "warm start",
    "auto, budget 1.05",
    "auto 70",
    "auto 95",
    "O-BELM",
    "EDICT",
    "ReNoise",
    "averaged 3",
    "Anderson 3",
    "Anderson 5",
)
"""Methods that docs/methods.md shows."""
SHORT = ("evaluations", "latent_psnr", "psnr_to_vae", "psnr", "ssim", "noise_std", "noise_kurtosis")


def number(value: float | None, digits: int) -> str:
    """A figure; what is stored as None is a PSNR without a difference."""
    return "exact" if value is None else f"{round(value, digits) + 0.0:.{digits}f}"  # no minus zero


def of(rows: Iterable[Row], group: str, **settings: object) -> list[Row]:
    """The rows of a group with these settings."""
    return [
        row
        for row in rows
        if row["case"]["group"] == group and all(row["case"][name] == value for name, value in settings.items())
    ]


def grids(rows: Sequence[Row]) -> list[int]:
    """The N of which there is a comparison at guidance 1."""
    return sorted({row["case"]["steps"] for row in of(rows, "guidance 1") if "figures" in row})


def about(rows: Sequence[Row]) -> str:
    """How many images stand behind the medians of these rows."""
    counts = sorted({row["figures"]["all"]["count"] for row in rows if "figures" in row})
    images = " or ".join(str(count) for count in counts)
    return f"(bundled model, {images} images, medians, `make accuracy`)"


def figures(row: Row, columns: Sequence[str]) -> list[str]:
    """The cells of a row; a run that failed says so in the first."""
    if "figures" not in row:
        return [f"not finite: {row['failed']}", *[""] * (len(columns) - 1)]
    found = row["figures"].get("all") or next(iter(row["figures"].values()))
    return [number(found[name], COLUMNS[name][1]) if name in found else "" for name in columns]


def heads(columns: Sequence[str]) -> list[str]:
    return [COLUMNS[name][0] for name in columns]


def short_table(rows: Sequence[Row]) -> str:
    """What a page of a method shows."""
    mine = sorted(rows, key=lambda row: (row["case"]["steps"], _cost(row)))
    lines = [[row["case"]["name"], str(row["case"]["steps"]), *figures(row, SHORT)] for row in mine]
    return table(["", "N", *heads(SHORT)], lines)


def headline(rows: Sequence[Row]) -> str:
    """The table of docs/methods.md: some methods on the longest grid."""
    mine = {row["case"]["name"]: row for row in of(rows, "guidance 1", steps=grids(rows)[-1]) if "figures" in row}
    lines = [[name, *figures(mine[name], SHORT)] for name in HEADLINE if name in mine]
    floor = next(iter(mine.values()))["figures"]["all"]
    lines.insert(0, _floor_line(floor, SHORT))
    picture = "![Evaluations a step against median latent PSNR](pareto.png)"
    which = f"N = {grids(rows)[-1]}, guidance 1, float32, medians of {floor['count']} images, PSNR in dB"
    said = f"What they buy on the bundled model, {which} (`make accuracy`; [all figures](accuracy.md)):"
    return f"{said}\n\n{picture}\n\n{table(['', *heads(SHORT)], lines)}"


def at_one(rows: Sequence[Row]) -> str:
    parts = []
    for n in grids(rows):
        mine = sorted(of(rows, "guidance 1", steps=n), key=_cost)
        lines = [[row["case"]["name"], *figures(row, list(COLUMNS)), *_cost_of_time(row)] for row in mine]
        floor = next(row["figures"]["all"] for row in mine if "figures" in row)
        lines.insert(0, [*_floor_line(floor, list(COLUMNS)), "", ""])
        caption = f"**N = {n}**, medians of {floor['count']} images, float32"
        parts.append(f"{caption}\n\n{table(['', *heads(list(COLUMNS)), 's an image', 'wasted'], lines)}")
    return "\n\n".join(parts)


def _floor_line(floor: dict[str, float], columns: Sequence[str]) -> list[str]:
    """The VAE round trip, the ceiling of every image figure."""
    known = {"psnr": floor["vae_psnr"], "ssim": floor["vae_ssim"]}
    cells = [number(known[name], COLUMNS[name][1]) if name in known else "" for name in columns]
    return ["VAE round trip", *cells]


def _cost(row: Row) -> tuple[float, float]:
    found = row.get("figures", {}).get("all", {})
    return found.get("evaluations", 0), -(found.get("latent_psnr") or 1e9)


def _cost_of_time(row: Row) -> list[str]:
    """Seconds an image, and the share of samples that were run for images already done."""
    return [f"{row['seconds']:.2f}", f"{row['waste']:.0%}"] if "seconds" in row else ["", ""]


def by_kind(rows: Sequence[Row]) -> str:
    """Latent PSNR by kind of image on the longest grid; the plain ones by their images, see the page's introduction."""
    if not grids(rows):
        return ""
    mine = [row for row in of(rows, "guidance 1", steps=grids(rows)[-1]) if "figures" in row]
    kinds = [kind for kind in mine[0]["figures"] if kind not in ("all", *PLAIN)]
    plain = [kind for kind in PLAIN if kind in mine[0]["figures"]]
    head = ["", *kinds, *(f"{kind}, {what}" for kind in plain for what in ("latent", "image to VAE"))]
    lines = []
    for row in sorted(mine, key=_cost):
        found = row["figures"]
        cells = [number(found[kind]["latent_psnr"], 1) for kind in kinds]
        cells += [number(found[kind][name], 1) for kind in plain for name in ("latent_psnr", "psnr_to_vae")]
        lines.append([row["case"]["name"], *cells])
    return f"Latent PSNR in dB, N = {grids(rows)[-1]}.\n\n{table(head, lines)}"


def guided(rows: Sequence[Row]) -> str:
    found = of(rows, "guided")
    return guided_table(found) if found else ""


def guided_table(rows: Sequence[Row]) -> str:
    """Against the VAE round trip of the same images; evaluations are those of the inversion."""
    lines = []
    for row in rows:
        case = row["case"]
        cells = figures(row, ("evaluations", "latent_psnr", "psnr_to_vae", "psnr", "ssim"))
        extra = ["", ""]
        if "figures" in row:
            values = row["figures"]["all"]
            below = [number(values[name], 2) for name in ("below_vae", "most_below_vae")]
            extra = [f"{below[0]} ({below[1]})", str(values["count"])]
        lines.append([f"{case['back']:g}", case["name"], str(case["steps"]), *cells, *extra])
    head = heads(("evaluations", "latent_psnr", "psnr_to_vae", "psnr", "ssim"))
    return table(["guidance", "way back", "N", *head, "below the VAE, median (worst)", "images"], lines)


def by_dtype(group: str, name: str, digits: int = 1) -> Callable[[Sequence[Row]], str]:
    """A table of one figure, methods by dtypes."""

    def make(rows: Sequence[Row]) -> str:
        found = of(rows, group)
        if not found:
            return ""
        dtypes = list(dict.fromkeys(row["case"]["dtype"] for row in found))
        lines = []
        for method in dict.fromkeys(row["case"]["name"] for row in found):
            cells = {}
            for row in of(found, group, name=method):
                first = next(iter(row["figures"].values())) if "figures" in row else None
                cells[row["case"]["dtype"]] = number(first[name], digits) if first else "not finite"
            lines.append([method, *(cells.get(dtype, "") for dtype in dtypes)])
        caption = f"{COLUMNS[name][0]} in dB, N = {found[0]['case']['steps']}"
        return f"{caption[0].upper()}{caption[1:]}.\n\n{table(['', *dtypes], lines)}"

    return make


def generated(rows: Sequence[Row]) -> str:
    found = [row for row in of(rows, "generated") if "figures" in row]
    columns = ("evaluations", "latent_psnr", "noise_std", "noise_kurtosis")
    lines = [
        [row["case"]["name"], number(row["figures"]["all"]["noise_error"], 3), *figures(row, columns)] for row in found
    ]
    if not found:
        return ""
    caption = f"N = {found[0]['case']['steps']}, medians of {found[0]['figures']['all']['count']} images."
    return f"{caption}\n\n{table(['', 'noise error', *heads(columns)], lines)}"


def interpolation(rows: Sequence[Row]) -> str:
    found = [row for row in of(rows, "interpolation") if "figures" in row]
    if not found:
        return ""
    lines = []
    for row in found:
        values = row["figures"]["all"]
        cells = [number(values[f"image_psnr_{j}"], 1) for j in range(1, 7)]
        lines.append([row["case"]["name"], *cells, number(values["std_3"], 2), number(values["noise_error"], 3)])
    caption = f"N = {found[0]['case']['steps']}, image PSNR in dB against the image itself, medians of "
    head = ["", "1/6", "2/6", "3/6", "4/6", "5/6", "inversion", "std half way", "noise error"]
    return f"{caption}{found[0]['figures']['all']['count']} images.\n\n{table(head, lines)}"


def early(rows: Sequence[Row]) -> str:
    found = of(rows, "early")
    if not found:
        return ""
    columns = ("evaluations", "latent_psnr", "psnr_to_vae", "psnr", "gain", "midpoint", "noise_std")
    float32 = [row for row in of(rows, "guidance 1", steps=50) if row["case"]["name"] in ("DDIM", "EasyInv")]
    lines = []
    for row in [*float32, *found]:
        case = row["case"]
        model = "early" if case["model"] == "emoji64-early" else "bundled"
        lines.append([model, case["images"], case["dtype"], case["name"], *figures(row, columns)])
    return table(["model", "images", "dtype", "", *heads(columns)], sorted(lines, key=lambda line: line[:3]))


SECTIONS: dict[str, Callable[[Sequence[Row]], str]] = {
    "Guidance 1": at_one,
    "By kind of image": by_kind,
    "Guidance 3 and 7.5": guided,
    "Half precision": by_dtype("half precision", "latent_psnr"),
    "Plain white": by_dtype("white", "psnr_to_vae"),
    "Generated images": generated,
    "From the noise to its inversion": interpolation,
    "Imprecise models": early,
}
