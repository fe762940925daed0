"""interpolate and compare: what they write, in every kind of file."""

import csv

import pytest
from PIL import Image
from test_cli import PEACH, inside, result
from tiny import stable_diffusion

from invfast import demo, invert


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pipeline and inversions by it: two that go together, and one of more steps."""
    path = tmp_path_factory.mktemp("interpolate")
    stable_diffusion().save_pretrained(path / "model")
    pipe = stable_diffusion()
    images = [demo.load_images()[name].image.resize((40, 24)) for name in ("peach", "cat")]
    both = invert(pipe, images, ["a peach", "a cat"], method="edict", num_inference_steps=2)
    for j, name in enumerate(("a", "b")):
        both[j].save(path / f"{name}.safetensors")
    both.save(path / "both.safetensors")
    invert(pipe, images[0], method="edict", num_inference_steps=3).save(path / "three.safetensors")
    return path


def run(folder, *args):
    return inside("interpolate", *args, "--model", "model", cwd=folder)


def test_strips_and_gifs(folder):
    report = result(run(folder, "a.safetensors", "b.safetensors", "-o", "new/strip.png", "-n", 3, "--json"))
    assert report["images"] == ["new/strip.png"]
    assert Image.open(folder / "new" / "strip.png").size == (3 * 40 + 2 * 4, 24)
    report = result(run(folder, "a.safetensors", "b.safetensors", "-o", "it.gif", "-n", 3, "--cell", 80, "--json"))
    moving = Image.open(folder / "it.gif")
    assert (moving.size, moving.n_frames) == ((80, 48), 3)
    assert report["pictures"] == 3


def test_a_folder(folder):
    done = run(folder, "a.safetensors", "b.safetensors", "-o", "many", "--count", 11)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"many/{j:02}.png" for j in range(11)]
    assert Image.open(folder / "many" / "10.png").size == (40, 24)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["a.safetensors", "three.safetensors"], "the inversions differ in schedule"),
        (["a.safetensors", "both.safetensors"], "b is an inversion of 2 images"),
    ],
)
def test_what_cannot_be(args, message, folder):
    done = run(folder, *args, "-o", "x.png")
    assert done.returncode == 1
    assert message in " ".join(done.stderr.split())
    assert not (folder / "x.png").exists()


def test_compare_writes_figures_and_tables(tmp_path):
    args = ("--methods", "auto(budget=1.2), forward_start(1, anderson)", "--steps", 2, "--error-map", "--cell", 64)
    report = result(inside("compare", PEACH, *args, "--table", "t.csv", "-o", "g.svg", "--json", cwd=tmp_path))
    names = [row["method"] for row in report["rows"]]
    assert names == ["VAE round trip", "auto(budget=1.2)", "forward_start(1, anderson)"]
    assert report["table"] == "t.csv"
    read = list(csv.DictReader((tmp_path / "t.csv").open()))
    assert [row["method"] for row in read] == names
    assert float(read[1]["psnr"]) == report["rows"][1]["psnr"]
    assert (tmp_path / "g.svg").read_text().startswith("<svg")
    done = inside("compare", PEACH, "--methods", "ddim", "--steps", 2, "--table", "t.tex", "-o", "g.pdf", cwd=tmp_path)
    assert done.stdout.splitlines()[-2:] == ["g.pdf", "t.tex"]
    assert (tmp_path / "t.tex").read_text().startswith(r"\begin{tabular}")
    assert (tmp_path / "g.pdf").read_bytes().startswith(b"%PDF")


def test_settings_of_methods_for_invert(tmp_path):
    report = result(inside("invert", PEACH, "--method", "averaged(2)", "--steps", 3, "-o", "n", "--json", cwd=tmp_path))
    assert report["inversions"][0]["evaluations"] == 6
