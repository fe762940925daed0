"""`invfast analyze` on inversion files, and what it draws."""

import io
import json
import sys
from pathlib import Path

import jsonschema
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from test_cli import SCHEMA, inside, result
from tiny import QUICK

from invfast import invert
from invfast.analysis import analyze, figures, gaussian
from invfast.analysis.page import page


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    """Four inversions of one size, two of another, one that was interrupted, and their noise."""
    place = tmp_path_factory.mktemp("noise")
    for name, side in (("a", 8), ("b", 8), ("c", 8), ("d", 8), ("e", 5), ("f", 5)):
        x = gaussian((1, 4, side, side), ord(name))
        invert(tiny, x, method="ddim", **QUICK).save(place / f"{name}.safetensors")

    def stop(pipe, step, t, tensors):
        pipe._interrupt = step == 1

    invert(tiny, gaussian((1, 4, 8, 8)), method="ddim", callback_on_step_end=stop, **QUICK).save(place / "half")
    save_file({"noise": gaussian((4, 4, 8, 8))}, place / "true")
    save_file({"other": gaussian((4, 4, 8, 8))}, place / "other")
    (place / "cut").write_bytes(b"12345678")
    return place


FOUR = [f"{name}.safetensors" for name in "abcd"]
SIX = [f"{name}.safetensors" for name in "abcdef"]


def test_groups_of_one_shape(folder):
    report = result(inside("analyze", *SIX, "--json", cwd=folder))
    assert [(group["n"], group["shape"]) for group in report["groups"]] == [(4, [4, 8, 8]), (2, [4, 5, 5])]
    assert report["groups"][0]["skipped"] == {}
    assert list(report["groups"][1]["skipped"]) == ["correlation"]
    assert report["files"] == []
    subjects = {row["subject"] for row in report["groups"][0]["rows"]}
    assert subjects == {"correlation", "normality", "divergence", "spectrum", "areas", "alignment"}


def test_a_table_for_people(folder, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    done = inside("analyze", *FOUR, cwd=folder)
    assert done.returncode == 0, done.stderr
    for word in ("4 latents (4, 8, 8)", "permuted", "clean", "20 largest |r| of a patch", "as noise"):
        assert word in done.stdout
    assert "…" not in done.stdout
    assert "fewer than 4,096 latents" in " ".join(done.stderr.split())


def test_the_true_noise(folder):
    report = result(inside("analyze", *FOUR, "--noise", "true", "--json", cwd=folder))
    rows = {row["figure"]: row for row in report["groups"][0]["rows"]}
    assert rows["distance to the noise"]["latents"] > 0
    assert rows["mean error outside"]["latents"] > 0


def test_what_counts_as_plain(folder):
    shares = []
    for threshold in ("0.025", "2", "99"):
        report = result(inside("analyze", FOUR[0], "--plain", threshold, "--json", cwd=folder))
        shares += [row["latents"] for row in report["groups"][0]["rows"] if row["figure"] == "share of plain areas"]
    assert 0 <= shares[0] < shares[1] < shares[2] == 1


def test_figures_in_a_folder(folder, tmp_path):
    report = result(inside("analyze", *SIX, "-o", tmp_path / "new" / "figures", "--json", cwd=folder))
    names = [Path(name).name for name in report["files"]]
    assert names[:4] == [f"{n}-4x8x8.png" for n in ("correlation", "quantiles", "spectrum", "autocorrelation")]
    assert names[4:] == [f"{n}-4x5x5.png" for n in ("quantiles", "spectrum", "autocorrelation")]
    for name in report["files"]:
        assert Image.open(name).size == (900, 600)


def test_a_page_of_its_own(folder, tmp_path):
    report = result(inside("analyze", FOUR[0], SIX[4], "-o", tmp_path / "new" / "report.html", "--json", cwd=folder))
    (name,) = report["files"]
    text = Path(name).read_text(encoding="utf-8")
    assert text.count("<table>") == 2
    assert text.count("data:image/png;base64,") == 6
    assert "http" not in text  # it needs nothing from elsewhere


def test_the_same_call_gives_the_same(folder, tmp_path):
    one, two = (inside("analyze", FOUR[0], "-o", tmp_path / n / "r.html", "--json", cwd=folder) for n in "ab")
    assert json.loads(one.stdout)["groups"] == json.loads(two.stdout)["groups"]
    assert (tmp_path / "a" / "r.html").read_bytes() == (tmp_path / "b" / "r.html").read_bytes()
    other = inside("analyze", FOUR[0], "--seed", 5, "--json", cwd=folder)
    assert json.loads(other.stdout)["groups"] != json.loads(one.stdout)["groups"]


def test_one_that_was_interrupted(folder):
    done = inside("analyze", "half", "--json", cwd=folder)
    assert done.returncode == 0
    assert "interrupted at node 2 of 4; it is not noise yet" in " ".join(done.stderr.split())
    jsonschema.validate(json.loads(done.stdout), SCHEMA)


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        ([], 2, "Missing argument"),
        (["none"], 1, "inversion file 'none' does not exist"),
        (["cut"], 1, "cannot be used"),
        (["true"], 1, "it is no invfast.inversion file"),
        ([FOUR[0], "-o", "report.pdf"], 1, "a page ends in .html and a folder of figures has no ending"),
        ([FOUR[0], "-o", "true"], 1, "'true' is to be a folder, and is a file"),
        ([*SIX, "--noise", "true"], 1, "--noise is for files of one shape"),
        ([*FOUR, "--noise", "none"], 1, "noise file 'none' does not exist"),
        ([*FOUR, "--noise", "cut"], 1, "noise file 'cut' is no safetensors file"),
        ([*FOUR, "--noise", "other"], 1, "has no tensor 'noise', but ['other']"),
        ([*FOUR[:2], "--noise", "true"], 1, "noise must have the shape of the latents, (2, 4, 8, 8), got (4, 4, 8, 8)"),
        ([FOUR[0], "--seed", "x"], 2, "valid integer"),
        ([FOUR[0], "--plain", "-1"], 1, "threshold must be a positive number, got -1"),
    ],
)
def test_errors(args, code, message, folder, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    before = sorted(path.name for path in folder.iterdir())
    done = inside("analyze", *args, cwd=folder)
    assert done.returncode == code, done.stderr
    assert message in " ".join(done.stderr.split())
    assert done.stdout == ""
    assert sorted(path.name for path in folder.iterdir()) == before


# Figures


@pytest.fixture(scope="module")
def report():
    return analyze(gaussian((6, 4, 16, 16), 5), gaussian((6, 4, 16, 16), 6))


@pytest.mark.parametrize(
    ("suffix", "start"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF"), (".PNG", b"\x89PNG")]
)
def test_a_figure_is_written_by_its_ending(suffix, start, report, tmp_path):
    drawn = figures.draw(report)
    assert list(drawn) == ["correlation", "quantiles", "spectrum", "autocorrelation"]
    figures.save(drawn["spectrum"], tmp_path / f"x{suffix}")
    assert (tmp_path / f"x{suffix}").read_bytes().startswith(start)


def test_what_figures_are_not_written_as(report, tmp_path):
    with pytest.raises(ValueError, match="ends in none of them"):
        figures.save(figures.draw(report)["spectrum"], tmp_path / "x.jpg")
    with pytest.raises(OSError, match="missing"):
        figures.save(figures.draw(report)["spectrum"], tmp_path / "missing" / "x.png")


def test_drawing_leaves_matplotlib_as_it_is(report):
    figures.draw(report)
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()


@pytest.mark.parametrize("library", ["scipy", "matplotlib"])
def test_a_missing_library_names_the_extra(library, report, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == library]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, library, None)
    run = (lambda: analyze(gaussian((4, 1, 4, 4)))) if library == "scipy" else (lambda: page({"x": report}))
    with pytest.raises(ImportError, match=rf'need[s]? {library}.*pip install "invfast\[analysis\]"'):
        run()


def test_lines_are_told_apart_without_colour(report):
    lines = figures.draw(report)["correlation"].axes[0].get_lines()
    assert len({line.get_marker() for line in lines}) == len({line.get_linestyle() for line in lines}) == 3
    assert all(figure.axes[0].get_legend() for figure in figures.draw(report).values())
    content = io.BytesIO(figures.rendered(figures.draw(report)["quantiles"], ".png"))
    assert torch.tensor(Image.open(content).convert("L").getextrema()).diff() > 200
