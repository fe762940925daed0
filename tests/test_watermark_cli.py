"""`invfast watermark key`, `embed` and `detect`."""

import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from test_cli import inside, result

from invfast import invert
from invfast.analysis import gaussian
from invfast.watermark import RingID, TreeRing, load_key, save_key

QUICK = ("--steps", 4, "--json")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two keys, an image of one, and one that is grey."""
    place = tmp_path_factory.mktemp("watermark")
    for name in ("a", "b"):
        args = ("--shape", "4,16,16", "--copies", "1,4,4", "--json")
        made = result(inside("watermark", "key", "-o", f"{name}.json", *args, cwd=place))
        assert (made["kind"], made["bits"]) == ("gaussian_shading", 64)
    args = ("--prompt", "noto peach", "--guidance", 1)
    made = result(inside("watermark", "embed", "a.json", "-o", "out", "--seed", 5, *args, *QUICK, cwd=place))
    assert made["files"] == ["out/5.png"]
    Image.new("RGB", (64, 64), (128, 128, 128)).save(place / "grey.png")
    return place


def test_whose_image_it_is(folder):
    args = ("--key", "b.json", "--key", "a.json", "--method", "ddim", *QUICK)
    report = result(inside("watermark", "detect", "out/5.png", "grey.png", *args, cwd=folder))
    marked, grey = report["images"]
    assert (marked["image"], marked["key"], marked["found"]) == ("out/5.png", "a.json", True)
    assert marked["bit_accuracy"] > 0.8
    assert len(marked["bits"]) == 64
    assert not grey["found"]


def test_for_people(folder):
    args = ("--key", "a.json", "--method", "ddim", "--steps", 4, "--batch", 2)
    done = inside("watermark", "detect", "out/5.png", "grey.png", *args, cwd=folder)
    marked, grey = done.stdout.splitlines()
    assert marked.startswith("out/5.png: a.json (p = ")
    assert marked.endswith("% of 64 bits)")
    assert grey.startswith("grey.png: nothing found (p = ")


def test_latents_alone_and_inversions(folder, tiny):
    made = result(
        inside("watermark", "embed", "a.json", "-o", "x.safetensors", "-n", 2, "--seed", 5, "--json", cwd=folder)
    )
    assert made["files"] == ["x.safetensors"]
    latents = load_file(folder / "x.safetensors")["latents"]
    alone = load_key(folder / "a.json").embed(1, torch.Generator().manual_seed(6))
    assert torch.equal(latents[1:], alone)
    invert(tiny, gaussian((1, 4, 16, 16)), method="ddim", num_inference_steps=2).save(folder / "inversion.safetensors")
    found_by = ("--key", "a.json", "--fpr", 1e-6, "--json")  # the key is drawn: at 1 % one in a hundred is found
    report = result(inside("watermark", "detect", "inversion.safetensors", *found_by, cwd=folder))
    assert not report["images"][0]["found"]


def test_other_kinds(folder):
    for kind, cls, more in (
        ("tree_ring", TreeRing, ("--pattern", "rand", "--radius", 5)),
        ("ring_id", RingID, ("--message", "101010")),
    ):
        inside("watermark", "key", "--kind", kind, "-o", f"{kind}.json", *more, cwd=folder)
        made = load_key(folder / f"{kind}.json")
        assert isinstance(made, cls)
        assert made.shape == (4, 16, 16)  # the bundled model's


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["key"], 2, "Missing option"),
        (["key", "-o", "k.txt"], 1, "does not end in .json"),
        (["key", "-o", "a.json"], 1, "'a.json' exists; a key that is lost finds no image again"),
        (["key", "-o", "k.json", "--kind", "other"], 1, "unknown kind 'other'; expected one of tree_ring"),
        (["key", "-o", "k.json", "--shape", "4,16"], 1, "shape must be 3 integers"),
        (["key", "-o", "k.json", "--shape", "a"], 1, "shape must be three integers, as 4,64,64, got 'a'"),
        (["key", "-o", "k.json", "--shape", "4,16,16", "--radius", "3"], 1, "a gaussian_shading key has no --radius"),
        (["embed", "none.json", "-o", "new"], 1, "key file 'none.json' does not exist"),
        (["embed", "grey.png", "-o", "new"], 1, "key file 'grey.png' cannot be used"),
        (["embed", "a.json", "-o", "x.png"], 1, "a folder of images has no ending"),
        (["detect", "grey.png"], 2, "Missing option"),
        (["detect", "none.png", "--key", "a.json"], 1, "image 'none.png' does not exist"),
        (["detect", "grey.png", "--key", "a.json", "--fpr", "2"], 1, "fpr must lie between 0 and 1"),
        (["detect", "grey.png", "x.safetensors", "--key", "a.json"], 1, "images and inversions together"),
        (["detect", "inversion.safetensors", "--key", "large.json"], 1, "the key is for latents (4, 32, 32)"),
        (["detect", "grey.png", "--key", "a.json", "--method", "none"], 1, "unknown method 'none'"),
    ],
)
def test_errors(args, code, message, folder, tiny, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    save_key(TreeRing((4, 32, 32), "00" * 16, "ring", 5, 3), folder / "large.json")
    invert(tiny, gaussian((1, 4, 16, 16)), method="ddim", num_inference_steps=1).save(folder / "inversion.safetensors")
    before = sorted(path.name for path in folder.iterdir())
    done = inside("watermark", *args, cwd=folder)
    assert done.returncode == code, done.stderr
    assert message in " ".join(done.stderr.split())
    assert done.stdout == ""
    assert sorted(path.name for path in folder.iterdir()) == before


def test_a_key_says_nothing_of_its_secret(folder):
    done = inside("watermark", "key", "-o", "quiet.json", "--shape", "4,16,16", cwd=folder)
    secret = json.loads((folder / "quiet.json").read_text())["settings"]["secret"]
    assert secret not in done.stdout + done.stderr
