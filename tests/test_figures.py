"""Pictures and tables as files: sizes, aspects, and what is in them when they are opened again."""

import base64
import csv
import re
from io import BytesIO, StringIO

import numpy as np
import pytest
import torch
from PIL import Image

from invfast import figures, tables
from invfast.compare import COLUMNS, Comparison


def picture(width=6, height=4, colour="red"):
    return Image.new("RGB", (width, height), colour)


def share(image, colour):
    return (np.asarray(image) == colour).all(-1).sum()


def test_grid():
    cell = picture(4, 4)
    found = figures.grid([[cell, cell], [cell, cell]], ["one", "two\nlines"], ["a", "b"], cell=16)
    assert share(found, [255, 0, 0]) == 4 * 16 * 16


def test_a_grid_keeps_aspects():
    found = figures.grid([[picture(8, 4), picture(4, 8)]], ["wide", "high"], ["name"], cell=32)
    assert share(found, [255, 0, 0]) == 2 * 32 * 16
    assert found.height < 32 + 40
    assert figures.grid([[picture(4, 4)]], ["a title that is far wider than its pictures"], [""], cell=8).width > 200


def test_a_grid_of_other_lengths_is_refused():
    for rows, columns, names in (([], [], []), ([[picture()]], ["a", "b"], ["c"]), ([[picture()]], ["a"], [])):
        with pytest.raises(ValueError, match="a grid needs rows of as many pictures as columns, and a name a row"):
            figures.grid(rows, columns, names)


def test_resampling():
    """Enlarged, pixels stay squares; reduced, a checkerboard is grey and not black or white."""
    two = Image.fromarray(np.array([[[255, 0, 0], [0, 0, 255]]], np.uint8))
    large = figures.fitted(two, 8)
    assert large.size == (8, 4)
    assert (share(large, [255, 0, 0]), share(large, [0, 0, 255])) == (16, 16)
    board = Image.fromarray((np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8))
    assert abs(int(np.asarray(figures.fitted(board, 16)).mean()) - 127) < 3
    assert np.asarray(figures.fitted(board, 16)).std() < 20
    assert figures.fitted(picture(1000, 1), 10).size == (10, 1)
    assert figures.fitted(picture().convert("P"), 3).mode == "RGB"


@pytest.mark.parametrize("cell", [0, -1, 4097, 2.5, True, None, "8"])
def test_cells(cell):
    with pytest.raises(ValueError, match="cell must be an integer from 1 to 4096"):
        figures.fitted(picture(), cell)


def test_strip():
    found = figures.strip([picture(6, 4), picture(3, 2, "blue")])
    assert found.size == (6 + figures.GAP + 3, 4)
    assert (share(found, [255, 0, 0]), share(found, [0, 0, 255])) == (24, 6)
    assert figures.strip([picture(6, 4)] * 2, cell=12, gap=0).size == (24, 8)
    with pytest.raises(ValueError, match="the list is empty"):
        figures.strip([])


def test_heat():
    (found,) = figures.heat(torch.tensor([[[0.0, 1 / 3, 2 / 3, 1.0, 9.0, float("nan")]]]), 1.0)
    colours = [found.getpixel((x, 0)) for x in range(6)]
    assert colours == [(0, 0, 0), (255, 0, 0), (255, 255, 0), *[(255, 255, 255)] * 3]
    assert figures.heat(torch.zeros(2, 3, 3), 0.0)[1].getpixel((0, 0)) == (0, 0, 0)


def test_files(tmp_path):
    three = [picture(40, 30, colour) for colour in ("red", "green", "blue")]
    for suffix in (".png", ".PNG", ".svg", ".pdf", ".gif"):
        figures.save(three, tmp_path / f"three{suffix}")
        figures.save(three[0], str(tmp_path / f"one{suffix}"))
    assert Image.open(tmp_path / "three.png").size == (3 * 40 + 2 * figures.GAP, 30)
    moving = Image.open(tmp_path / "three.gif")
    assert (moving.size, moving.n_frames, moving.info["duration"], moving.info["loop"]) == ((40, 30), 3, 150, 0)
    seen = []
    for j in range(3):
        moving.seek(j)
        seen.append(moving.convert("RGB").getpixel((20, 15)))
    assert seen == [each.getpixel((0, 0)) for each in three]
    assert (tmp_path / "one.pdf").read_bytes().startswith(b"%PDF-")
    vector = (tmp_path / "one.svg").read_text()
    assert 'width="40" height="30" viewBox="0 0 40 30"' in vector
    (data,) = re.findall(r"base64,([^\"]+)", vector)
    assert np.array_equal(np.asarray(Image.open(BytesIO(base64.b64decode(data)))), np.asarray(three[0]))


def test_files_that_cannot_be(tmp_path):
    with pytest.raises(ValueError, match=r"written as \.png, \.pdf, \.svg, \.gif, got '\.jpg'"):
        figures.save(picture(), tmp_path / "a.jpg")
    with pytest.raises(ValueError, match=r"the frames of a GIF have one size, got \[\(3, 3\), \(4, 4\)\]"):
        figures.save([picture(4, 4), picture(3, 3)], tmp_path / "a.gif")
    with pytest.raises(ValueError, match="got none at all"):
        figures.encode([], ".gif")
    with pytest.raises(ValueError, match="the list is empty"):
        figures.encode([], ".png")
    assert not list(tmp_path.iterdir())


def row(method, value):
    return {"method": method, **dict.fromkeys(COLUMNS, value)}


def test_tables():
    found = Comparison([row("VAE round trip", None), row('forward_start(2, "a") 5% & x_T', 1 / 3)], picture())
    read = list(csv.DictReader(StringIO(found.table(".csv"))))
    assert read[0]["latent_psnr"] == ""
    assert read[1]["method"] == 'forward_start(2, "a") 5% & x_T'
    assert float(read[1]["seconds"]) == 1 / 3
    lines = found.table(".tex").splitlines()
    assert lines[0] == r"\begin{tabular}{lrrrrrrrr}"
    assert lines[2] == r"method & evals & sec & latent & VAE & image & SSIM & std & kurt \\"
    assert lines[5] == r'forward\_start(2, "a") 5\% \& x\_T & 0 & 0.3 & 0.3 & 0.3 & 0.3 & 0.333 & 0.33 & 0.3 \\'
    assert lines[4] == r"VAE round trip &  &  &  &  &  &  &  &  \\"
    with pytest.raises(ValueError, match=r"tables are written as \.csv or \.tex, got '\.xlsx'"):
        found.table(".xlsx")
    assert tables.escaped("a_b\\{}~^") == r"a\_b\textbackslash{}\{\}\textasciitilde{}\textasciicircum{}"
