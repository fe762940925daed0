"""Models by name: where a file says it was made, single files, and what is refused before anything is run."""

import json
import re
import shutil

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import stable_diffusion
from typer.testing import CliRunner

from invfast import Inversion, demo, invert, loading, reconstruct
from invfast.cli import app

PEACH = str(demo.ROOT / "images" / "peach.png")


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """The hub is never asked, whatever the variable says: huggingface_hub has read it long ago."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("COLUMNS", "1000")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    stable_diffusion().save_pretrained(folder)
    return folder


@pytest.fixture
def model(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(saved, "model")
    return tmp_path / "model"


def run(*args):
    return CliRunner().invoke(app, list(args))


def test_a_file_knows_its_model(model, tmp_path):
    done = run("invert", PEACH, "-o", "noise", "--steps", "1", "--method", "ddim", "--model", "model")
    assert done.exit_code == 0, done.stderr
    found = Inversion.load("noise/peach.safetensors")
    assert found.provenance["model"] == str(model)
    assert Inversion.concatenate([found, found])[1].to("cpu").provenance["model"] == str(model)
    done = run("reconstruct", "noise/peach.safetensors", "-o", "a.png")
    assert done.exit_code == 0, done.stderr
    assert f"model {model}, as noise/peach.safetensors says; --model takes another" in done.stderr
    assert "not what the inversion was made with" not in done.stderr
    done = run("edit", "noise/peach.safetensors", "--prompt", "photo dog", "-o", "b.png")
    assert done.exit_code == 0, done.stderr
    done = run("interpolate", "noise/peach.safetensors", "noise/peach.safetensors", "-n", "2", "-o", "c.png")
    assert done.exit_code == 0, done.stderr
    model.rename(tmp_path / "gone")
    done = run("reconstruct", "noise/peach.safetensors", "-o", "d.png")
    assert done.exit_code == 1
    assert f"model '{model}', which inversion file 'noise/peach.safetensors' names, does not exist here" in done.stderr
    assert run("reconstruct", "noise/peach.safetensors", "-o", "d.png", "--model", "gone").exit_code == 0


def test_bundled_models_are_known_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, load in demo.PIPELINES.items():
        pipe = load()
        side = demo.SIZES[name]
        assert side == (pipe.transformer if hasattr(pipe, "transformer") else pipe.unet).config.sample_size * (
            1 if name == "emoji32" else 4
        )
        image = demo.load_images()["peach"].image.resize((side, side))
        found = invert(pipe, image, method="ddim", num_inference_steps=1)
        assert found.provenance["model"] == f"invfast:{name}"
        assert type(loading.load(loading.named_by(f"invfast:{name}", "a"), "cpu")) is type(pipe)
    found.save("a.safetensors")
    assert "model invfast:emoji32, as a.safetensors says" in run("reconstruct", "a.safetensors", "-o", "a.png").stderr
    assert list(demo.SIZES) == list(demo.PIPELINES)
    with pytest.raises(ValueError, match="unknown bundled model 'invfast:emoji'; expected one of invfast:emoji64"):
        loading.load("invfast:emoji", "cpu")


def test_files_of_old_are_the_bundled_models(tmp_path, pipe, peach):
    found = invert(pipe, peach, method="ddim", num_inference_steps=1)
    del found.provenance["model"]
    found.save(tmp_path / "old.safetensors")
    old = Inversion.load(tmp_path / "old.safetensors")
    assert loading.named_by(old.provenance.get("model"), "old.safetensors") == ""
    reconstruct(pipe, old)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("a/b", FileNotFoundError, "is not in the hub's cache, and a file's word is not enough to download it"),
        ("../model", ValueError, "is no absolute path or hub id"),
        ("model", ValueError, "or is also a folder here"),
        ("https://example.com/a", ValueError, "is no absolute path or hub id"),
        ("//server/share", ValueError, "is no absolute path or hub id"),
        ("/no\nwhere", ValueError, "is no absolute path or hub id"),
        ("/nowhere/at/all", FileNotFoundError, "does not exist here any more; pass --model with a folder or hub id"),
        ("invfast:other", ValueError, "is no absolute path or hub id"),
    ],
)
def test_what_a_file_says_is_not_trusted(name, error, message, model):
    with pytest.raises(error, match=r"which inversion file 'x' names") as caught:
        loading.named_by(name, "x")
    assert message in str(caught.value)


def test_inversions_of_two_models_have_no_common_one(model, pipe, peach):
    for name in ("", "model"):
        found = invert(loading.load(name, "cpu"), peach, method="ddim", num_inference_steps=1)
        found.save(f"{name or 'own'}.safetensors")
    done = run("interpolate", "own.safetensors", "model.safetensors", "-o", "a.png")
    assert done.exit_code == 1
    assert "'own.safetensors' names 'invfast:emoji64' and 'model.safetensors' names" in done.stderr


def single(model):
    """Any tensors as one file; which checkpoint it is does not matter where the conversion is diffusers'."""
    save_file(load_file(model / "unet" / "diffusion_pytorch_model.safetensors"), "one.safetensors")
    return "one.safetensors"


def test_a_single_file_is_converted_by_diffusers_without_the_hub(model, monkeypatch):
    asked = []

    def from_single_file(path, **options):
        asked.append((path, options))
        return stable_diffusion()

    monkeypatch.setattr(diffusers.StableDiffusionPipeline, "from_single_file", from_single_file)
    pipe = loading.load(single(model), "cpu", "model")
    assert asked == [("one.safetensors", {"config": "model", "local_files_only": True})]
    found = invert(pipe, PEACH, method="ddim", num_inference_steps=1)
    assert found.provenance["model"] == str(model.parent / "one.safetensors")
    assert loading.digest("one.safetensors", "model") != loading.digest("one.safetensors")


def test_single_files_that_cannot_be(model):
    torch.save({}, "one.ckpt")
    (model.parent / "text.txt").write_text("hello")
    one = single(model)
    for name, config, error, message in (
        ("one.ckpt", "", OSError, "is a pickle, which runs code when it is read; take its .safetensors"),
        ("none.safetensors", "", FileNotFoundError, "checkpoint 'none.safetensors' does not exist; expected a folder"),
        ("text.txt", "", ValueError, "is a file that is no .safetensors checkpoint"),
        (one, "nowhere/at/all", FileNotFoundError, "config 'nowhere/at/all' does not exist"),
        (one, "a/b", FileNotFoundError, "the configs and tokenizer of 'a/b' are not in the hub's cache; pass --config"),
        (one, "", FileNotFoundError, "are not in the hub's cache; pass --config FOLDER"),
        (one, "model", ValueError, "cannot be read as the StableDiffusionPipeline that 'model' describes"),
        ("model", "model", ValueError, "config 'model' is for a model that is a single .safetensors file"),
    ):
        with pytest.raises(error) as caught:
            loading.load(name, "cpu", config)
        assert message in str(caught.value), name


def test_code_that_comes_with_a_model_is_not_run(model):
    index = json.loads((model / "model_index.json").read_text())
    code = "raise SystemExit('run')"
    for change in ({"unet": ["net", "Net"]}, {"_class_name": ["pipeline", "P"]}, {"vae": ["os", "system"]}):
        (model / "model_index.json").write_text(json.dumps({**index, **change}))
        (model / "pipeline.py").write_text(code)
        (model / "unet" / "net.py").write_text(code)
        with pytest.raises(ValueError, match=r"asks for code of its own .* is not run"):
            loading.load("model", "cpu")
    (model / "model_index.json").write_text("[]")
    with pytest.raises(ValueError, match="is no index of a diffusers pipeline"):
        loading.load("model", "cpu")
    (model / "model_index.json").write_text(json.dumps({**index, "_class_name": "NextYearsPipeline"}))
    with pytest.raises(ValueError, match=r"names the pipeline 'NextYearsPipeline', which diffusers .* does not have"):
        loading.load("model", "cpu")


def test_folders_and_ids_that_are_no_model(model):
    for name, message in (
        (
            "nowhere/at/all",
            "model 'nowhere/at/all' does not exist; expected a folder that",
        ),
        ("model/unet", "has no model_index.json; expected"),
        ("nobody/nothing", "cannot be had from the hub or its cache"),
    ):
        with pytest.raises(OSError, match=re.escape(message)):
            loading.load(name, "cpu")
