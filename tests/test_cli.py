"""The command line as a user runs it: processes, exit codes, streams."""

import contextlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
import zlib
from pathlib import Path
from types import SimpleNamespace

import jsonschema
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EDMEulerScheduler
from PIL import Image
from safetensors.torch import save_file
from tiny import SD, stable_diffusion
from toy import distance
from typer.main import get_command
from typer.testing import CliRunner

from invfast import Inversion, demo, invert, reconstruct
from invfast.cli import app
from invfast.cli.asked import check
from invfast.images import Frame, load
from invfast.watermark import load_key

SCHEMA = json.loads((Path(__file__).parents[1] / "docs" / "cli.schema.json").read_text())
PEACH = str(demo.ROOT / "images" / "peach.png")


def invfast(*args, cwd):
    command = [sys.executable, "-c", "from invfast.cli import main; main()", *map(str, args)]
    env = {**os.environ, "NO_COLOR": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env)


def inside(*args, cwd):
    """The same in this process, which spares ten seconds of imports."""
    with contextlib.chdir(cwd):
        done = CliRunner().invoke(app, [str(each) for each in args])
    return SimpleNamespace(returncode=done.exit_code, stdout=done.stdout, stderr=done.stderr)


def result(done):
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)  # nothing but the result on stdout
    jsonschema.validate(report, SCHEMA)
    return report


def test_invert_and_reconstruct(tmp_path):
    cat = demo.ROOT / "images" / "cat.png"
    args = ("--method", "anderson", "--steps", 4, "--prompt", "noto peach", "--json")
    report = result(invfast("invert", PEACH, cat, "-o", "noise", *args, cwd=tmp_path))
    assert [row["evaluations"] for row in report["inversions"]] == [12, 12]
    assert sorted(os.listdir(tmp_path / "noise")) == ["cat.safetensors", "peach.safetensors"]
    assert Inversion.load(tmp_path / "noise" / "peach.safetensors").prompt == ["noto peach"]
    report = result(inside("reconstruct", "noise/peach.safetensors", "-o", "new/peach.png", "--json", cwd=tmp_path))
    assert Image.open(tmp_path / report["image"]).size == (64, 64)


def test_info(tmp_path):
    args = ("--method", "ddim", "--steps", 3, "--prompt", "noto peach")
    inside("invert", PEACH, "-o", "noise", *args, cwd=tmp_path)
    inside("watermark", "key", "-o", "key.json", cwd=tmp_path)
    (tmp_path / "in").mkdir()
    shutil.copy(PEACH, tmp_path / "in" / "peach.png")
    inside("batch", "in", "-o", "out", "--method", "ddim", "--steps", 1, cwd=tmp_path)
    files = ("noise/peach.safetensors", "key.json", "in/peach.png", "out")
    found = {row["file"]: row for row in result(inside("info", *files, "--json", cwd=tmp_path))["files"]}
    inversion = found["noise/peach.safetensors"]
    wanted = {"kind": "inversion", "latents": [1, 4, 16, 16], "prompt": ["noto peach"], "steps": 3, "guidance": 1.0}
    assert wanted.items() <= inversion.items()
    assert (inversion["model"], inversion["evaluations"]) == ("invfast:emoji64", [3])
    assert (found["in/peach.png"]["width"], found["out"]["done"], found["out"]["failed"]) == (64, 1, {})
    secret = load_key(tmp_path / "key.json").secret
    text = inside("info", *files, cwd=tmp_path).stdout
    assert "kind: key, gaussian_shading" in text
    assert secret not in text
    for name, message in (
        ("none.png", "does not exist"),
        (".", "is no folder of results"),
        ("a.txt", "is none of what"),
    ):
        (tmp_path / "a.txt").touch()
        done = inside("info", name, cwd=tmp_path)
        assert (done.returncode, message in done.stderr) == (1, True), done.stderr


def test_edit(tmp_path):
    args = ("--method", "ddim", "--steps", 3, "--prompt", "noto peach", "--trajectory", "--json")
    result(inside("invert", PEACH, "-o", "noise", *args, cwd=tmp_path))
    Image.new("L", (64, 64), 255).save(tmp_path / "mask.png")
    file, more = "noise/peach.safetensors", ("--prompt", "noto tulip", "--json")
    for method in ("prompt", "masactrl"):
        args = ("-o", f"{method}.png", "--method", method, "--mask", "mask.png")
        report = result(inside("edit", file, *more, *args, cwd=tmp_path))
        assert report["method"] == method
        assert Image.open(tmp_path / report["image"]).size == (64, 64)


def test_a_folder_of_images_in_batches(tmp_path):
    """Batches of one size, a prompt each, from a pipeline in a folder: each file equals its image alone."""
    stable_diffusion().save_pretrained(tmp_path / "model")
    names = ["peach", "house", "tulip"]
    for name, side in zip(names, (64, 64, 40), strict=True):
        demo.load_images()[name].image.resize((side, side)).save(tmp_path / f"{name}.png")
    files = [f"{name}.png" for name in names]
    prompts = [f"--prompt=noto {name}" for name in names]
    args = ("--model", "model", "--method", "ddim", "--steps", 4, "--batch", 2, "--dtype", "float64", "--json")
    report = result(inside("invert", *files, *prompts, "-o", "noise", *args, cwd=tmp_path))
    assert [row["latents"] for row in report["inversions"]] == [[4, 8, 8], [4, 8, 8], [4, 5, 5]]
    for name in names:
        found = Inversion.load(tmp_path / "noise" / f"{name}.safetensors")
        pipe = stable_diffusion()
        options = {"method": "ddim", "num_inference_steps": 4, "dtype": "float64"}
        alone = invert(pipe, tmp_path / f"{name}.png", f"noto {name}", **options)
        assert distance(found.latents, alone.latents) < 1e-10
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # one image of a batch was made with what it is rebuilt with
            reconstruct(pipe, found, dtype="float64")


def test_an_unknown_hub_id_offline(tmp_path):
    done = invfast("invert", PEACH, "-o", "noise", "--model", "nobody/nothing", cwd=tmp_path)
    assert done.returncode == 1
    assert "nobody/nothing" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "noise").exists()


def test_compare(tmp_path):
    args = ("--methods", "ddim,warm_start", "--steps", 4, "-o", "grid.png", "--json")
    report = result(inside("compare", PEACH, *args, cwd=tmp_path))
    assert [row["method"] for row in report["rows"]] == ["VAE round trip", "ddim", "warm_start"]
    assert report["rows"][2]["latent_psnr"] > report["rows"][1]["latent_psnr"]
    assert Image.open(tmp_path / "grid.png").size[0] > 6 * 96


def test_doctor(tmp_path):
    report = result(inside("doctor", "--json", cwd=tmp_path))
    assert report["runtimes"]["eager"] == "available"
    said = inside("doctor", cwd=tmp_path).stdout
    assert "eager" in said
    assert "\x1b" not in said  # no terminal, no colours


@pytest.mark.slow
def test_export_and_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("INVFAST_CACHE", str(tmp_path / "cache"))
    report = result(inside("export", "--runtime", "openvino", "--size", 64, "--json", cwd=tmp_path))
    assert (report["runtime"], report["dtype"]) == ("openvino", "float32")
    (entry,) = result(inside("cache", "ls", "--json", cwd=tmp_path))["entries"]
    assert entry["inputs"]["class"] == "UNet2DConditionModel"
    assert entry["key"] in CliRunner().invoke(app, ["cache", "ls"]).stdout
    args = ("invert", PEACH, "-o", "noise", "--steps", 2, "--runtime", "openvino", "--json")
    assert result(inside(*args, cwd=tmp_path))["inversions"][0]["runtime"] == "openvino"
    assert result(inside("cache", "rm", entry["key"], "--json", cwd=tmp_path))["removed"] == [entry["key"]]
    assert result(inside("cache", "ls", "--json", cwd=tmp_path))["entries"] == []


def test_sizes(tmp_path, monkeypatch):
    """The bundled model's own for a photograph, what was asked for, or the image's."""
    monkeypatch.chdir(tmp_path)
    picture = Image.effect_noise((160, 96), 60).convert("RGB")
    picture.save("wide.jpg")
    args = ["wide.jpg", "-o", "out", "--method", "ddim", "--steps", "1", "--json"]
    for asked, shape, said in (
        ([], [4, 16, 16], True),
        (["--size", "64"], [4, 16, 16], False),
        (["--size", "96x64", "--fit", "pad"], [4, 16, 24], False),
        (["--size", "own"], [4, 24, 40], False),
    ):
        done = CliRunner().invoke(app, ["invert", *args, *asked])
        assert json.loads(done.stdout)["inversions"][0]["latents"] == shape
        assert ("taken at 64 px, as the bundled model was trained" in done.stderr) == said
    done = CliRunner().invoke(app, ["invert", *args, "--size", "64", "--fit", "pad"])
    padded = Inversion.load("out/wide.safetensors")
    wanted = invert(demo.load_pipeline(), Frame(64, 64, "pad")(load("wide.jpg")), method="ddim", num_inference_steps=1)
    assert distance(padded.init_latents, wanted.init_latents) < 1e-6


def test_ctrl_c_leaves_nothing(tmp_path):
    args = ("invert", PEACH, "-o", "noise", "--steps", "999", "--method", "anderson")
    command = [sys.executable, "-c", "from invfast.cli import main; main()", *args]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "noise").is_dir():  # made right before the first image
        time.sleep(0.05)
        assert process.poll() is None
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    _, log = process.communicate(timeout=30)
    assert process.returncode == 130, log
    assert time.monotonic() - began < 2
    assert os.listdir(tmp_path / "noise") == []


def test_a_swallowed_ctrl_c_stops_the_next_step(tmp_path):
    """One that arrived inside a destructor, say: the flag is set, the exception went nowhere."""
    code = "from invfast.cli import base, images, main; load = images.load_model\n"
    code += "images.load_model = lambda *args: (load(*args), base._stop_asked.set())[0]\nmain()"
    command = [sys.executable, "-c", code, "invert", PEACH, "-o", "noise", "--steps", "999"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 130, done.stderr
    assert os.listdir(tmp_path / "noise") == []


@pytest.fixture
def files(tmp_path):
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "cut.png").write_bytes(Path(PEACH).read_bytes()[:2000])
    (tmp_path / "cut.safetensors").write_bytes(b"12345678")
    (tmp_path / "bomb.png").write_bytes(bomb())
    (tmp_path / "zero.png").write_bytes(bomb(0, 1))
    save_file({"latents": torch.zeros(1, 4, 16, 16)}, tmp_path / "foreign.safetensors")
    return tmp_path


def bomb(width=1_000_000, height=1_000_000):
    """A PNG of a hundred bytes that claims this many pixels."""

    def chunk(kind, content):
        return len(content).to_bytes(4) + kind + content + zlib.crc32(kind + content).to_bytes(4)

    header = width.to_bytes(4) + height.to_bytes(4) + bytes([8, 2, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["invert", "none.png", "-o", "."], 1, "image 'none.png' does not exist"),
        (["invert", "empty.png", "-o", "."], 1, "is not one of PNG, JPEG, WEBP"),
        (["invert", "text.png", "-o", "."], 1, "is not one of PNG, JPEG, WEBP"),
        (["invert", "cut.png", "-o", "."], 1, "cannot be read"),
        (["invert", "bomb.png", "-o", "."], 1, "pixels"),
        (["invert", "zero.png", "-o", "."], 1, "image 'zero.png'"),
        (["invert", PEACH, PEACH, "-o", "."], 1, "two images share a file name"),
        (["invert", PEACH, "-o", ".", "--prompt", "a", "--prompt", "b"], 1, "2 prompts for 1 images"),
        (["invert", PEACH, "-o", ".", "--steps", "-3"], 2, "greater than or equal to 1"),
        (["invert", PEACH, "-o", ".", "--batch", "0"], 2, "greater than or equal to 1"),
        (["invert", PEACH, "-o", ".", "--size", "63"], 1, "height must be a positive multiple of 4, got 63"),
        (["invert", PEACH, "-o", ".", "--device", "warp"], 1, "device 'warp' cannot be used: "),
        (["invert", PEACH, "-o", ".", "--size", "0"], 2, "as 512, or width and height, as 640x512, got '0'"),
        (["invert", PEACH, "-o", ".", "--size", "64x"], 2, "as 512, or width and height, as 640x512, got '64x'"),
        (["invert", PEACH, "-o", ".", "--fit", "crop", "--model", "a"], 2, "--fit says how images come to a --size"),
        (["invert", PEACH, "-o", ".", "--fit", "stretch"], 2, "'stretch' is not one of"),
        (["invert", "-o", "."], 2, "Missing argument"),
        (["invert", PEACH, "-o", ".", "--method", "easy-inv"], 1, "unknown method 'easy-inv'; expected one of 'ddim'"),
        (["invert", PEACH, "-o", ".", "--runtime", "warp"], 1, "unknown runtime 'warp'"),
        (["invert", PEACH, "-o", ".", "--encode", "vae"], 1, "unknown encode 'vae'; expected 'encoder', 'decoder' or"),
        (["invert", PEACH, "-o", ".", "--steps", "0"], 2, "greater than or equal to 1"),
        (["invert", PEACH, "-o", ".", "--steps", "1001"], 1, "from 1 to 1000, got 1001"),
        (["invert", PEACH, "-o", ".", "--steps", "fifty"], 2, "valid integer"),
        (["invert", PEACH, "-o", ".", "--guidance", "nan"], 1, "guidance_scale must be a finite number"),
        (["invert", PEACH, "-o", ".", "--dtype", "int4"], 1, "unknown dtype 'int4'"),
        (["invert", PEACH], 2, "Missing option"),
        (["reconstruct", "none", "-o", "x.jpg"], 1, "does not end in .png"),
        (["reconstruct", "none", "-o", "x.png"], 1, "inversion file 'none' does not exist"),
        (["reconstruct", "cut.safetensors", "-o", "x.png"], 1, "cannot be used"),
        (["reconstruct", "foreign.safetensors", "-o", "x.png"], 1, "it is no invfast.inversion file"),
        (["edit", "none", "--prompt", "a", "-o", "x.jpg"], 1, "does not end in .png"),
        (["edit", "none", "--prompt", "a", "-o", "x.png"], 1, "inversion file 'none' does not exist"),
        (["edit", "none", "--prompt", "a", "--method", "magic", "-o", "x.png"], 1, "unknown editing method 'magic'"),
        (["edit", "none", "--prompt", "a", "--mask", "m.png", "-o", "x.png"], 1, "mask 'm.png' does not exist"),
        (["edit", "none", "-o", "x.png"], 2, "Missing option"),
        (["compare", "bomb.png", "-o", "x.png"], 1, "pixels"),
        (["compare", PEACH, "-o", "x.jpg"], 1, "does not end in .png"),
        (["compare", "none.png", "-o", "x.jpg"], 1, "does not end in .png"),
        (["compare", PEACH, "--steps", "0", "-o", "x.png"], 2, "greater than or equal to 1"),
        (["compare", PEACH, "--methods", "ddim,", "-o", "x.png"], 1, "unknown method ''"),
        (["compare", PEACH, "--methods", "auto(budgt=1), ddim", "-o", "x.png"], 1, "auto has no setting 'budgt'"),
        (["compare", PEACH, "--methods", "ddim(", "-o", "x.png"], 1, "was never closed"),
        (["compare", PEACH, "--table", "x.xls", "-o", "x.png"], 1, "tables are written as CSV or TEX; 'x.xls' does"),
        (["compare", PEACH, "--cell", "0", "-o", "x.png"], 1, "cell must be an integer from 1 to 4096"),
        (["compare", PEACH, "-o", "x.gif"], 1, "written as PNG or PDF or SVG; 'x.gif' does not end in .png or .pdf"),
        (["invert", PEACH, "-o", ".", "--method", "auto(1"], 1, "was never closed"),
        (["invert", PEACH, "-o", ".", "--method", "exit()"], 1, "unknown method 'exit'"),
        (["interpolate", "none", "none", "-o", "x.jpg"], 1, "'x.jpg' does not end in .png or .pdf or .svg or .gif"),
        (["interpolate", "none", "none", "-o", "x.png"], 1, "inversion file 'none' does not exist"),
        (["interpolate", "cut.safetensors", "none", "-o", "x"], 1, "cannot be used"),
        (["interpolate", "none", "-o", "x.png"], 2, "Missing argument"),
        (["cache", "rm"], 1, "or pass --all"),
        (["cache", "rm", "nothing"], 1, "no cached network 'nothing'"),
        (["export", "--size", "63"], 1, "height must be a positive multiple of 4, got 63"),
        (["export", "--runtime", "openvino_gpu"], 1, "is unavailable: OpenVINO finds no GPU here"),
        (["fly"], 2, "No such command"),
    ],
)
def test_errors(args, code, message, files, monkeypatch):
    monkeypatch.chdir(files)
    monkeypatch.setenv("COLUMNS", "1000")
    before = sorted(os.listdir(files))
    done = CliRunner().invoke(app, args)
    assert done.exit_code == code, done.output
    assert message in " ".join(done.stderr.split())
    assert done.stderr.count("error: ") == (code == 1)
    assert done.stdout == ""
    assert sorted(os.listdir(files)) == before


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path):
    command = [sys.executable, "-c", "from invfast.cli import main; main()", "cache", "ls"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert "error" not in process.stderr.read()
    assert process.wait() == 0


def test_where_an_error_came_from_is_shown_when_asked(monkeypatch):
    monkeypatch.setenv("INVFAST_TRACEBACK", "1")
    done = CliRunner().invoke(app, ["reconstruct", "none", "-o", "x.jpg"])
    assert isinstance(done.exception, ValueError)
    assert "error:" not in done.stderr


def test_a_cache_that_cannot_be_made_is_said_without_a_number(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("INVFAST_CACHE", str(tmp_path / "file" / "cache"))
    done = CliRunner().invoke(app, ["cache", "ls"])
    assert done.exit_code == 1
    assert done.stderr.startswith("error: cache folder ")


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--device", "warp", "device 'warp' cannot be used"),
        ("--device", "cuda:99", "device 'cuda:99' cannot be used"),
        ("--dtype", "int4", "unknown dtype 'int4'"),
        ("--runtime", "warp", "unknown runtime 'warp'"),
        ("--guidance", "nan", "guidance_scale must be a finite number"),
        ("--strength", "0", "strength must lie in (0, 1], got 0.0"),
        ("--encode", "vae", "unknown encode 'vae'"),
        ("--output", "file/x.png", "file' is a file; name another place"),
        ("--table", "file/x.csv", "file' is a file; name another place"),
        ("--cell", "0", "cell must be an integer from 1 to 4096"),
        ("--seed", "99999999999999999999", "a seed must be an integer of 64 bits, got 99999999999999999999"),
        ("--seed", "-99999999999999999999", "a seed must be an integer of 64 bits"),
    ],
)
def test_options_are_checked_before_a_model_is_loaded(option, value, message, tmp_path, monkeypatch):
    """In every command that has them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "1000")
    monkeypatch.setattr("invfast.loading.load", None)
    monkeypatch.setattr("invfast.cli.base.load_model", None)
    (tmp_path / "file").touch()
    asked = 0
    for name, command in get_command(app).commands.items():
        if not any(option in parameter.opts for parameter in command.params):
            continue
        given = {"edit": ["a", "--prompt", "b"], "interpolate": ["a", "b"], "export": [], "app": [], "batch": ["."]}
        writes = option != "--output" and any("--output" in parameter.opts for parameter in command.params)
        args = [name, *given.get(name, ["a"]), *(["-o", "x.png"] if writes else [])]
        done = CliRunner().invoke(app, [*args, option, value])
        assert (done.exit_code, message in done.stderr) == (1, True), (name, done.stderr)
        asked += 1
    assert asked >= 1


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        ("interpolate a b -o file", 1, "'file' is a file; name a folder"),
        ("interpolate a b -o x.png -n 1", 2, "greater than or equal to 2"),
        ("watermark embed a.json -o file", 1, "'file' is a file; name a folder"),
        ("watermark embed a.json -o x --seed 99999999999999999999", 1, "a seed must be an integer of 64 bits"),
        ("watermark detect a.png --key a.json --device warp", 1, "device 'warp' cannot be used"),
        ("watermark key -o k.json --radius 3", 1, "a gaussian_shading key has no --radius"),
        ("batch . -o x --key file --fit pad", 2, "--fit says how images come to a --size; give one"),
        ("batch . -o x --size 60000", 1, "a size may have 67108864 pixels at most, got 60000 x 60000"),
        ("export --size 60000", 1, "pixels at most, got 60000 x 60000"),
        ("export --capability 86 --runtime eager", 1, "'eager' does not build for another machine's GPU"),
    ],
)
def test_what_one_command_has_is_checked_before_a_model_is_loaded(args, code, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "1000")
    monkeypatch.setattr("invfast.loading.load", None)
    (tmp_path / "file").touch()
    done = CliRunner().invoke(app, args.split())
    assert (done.exit_code, message in " ".join(done.stderr.split())) == (code, True), done.stderr
    assert done.stdout == ""
    assert os.listdir() == ["file"]


def test_devices_of_a_cluster_are_not_this_machines():
    with pytest.raises(ValueError, match="device 'cuda:99' cannot be used"):
        check({"device": "cuda:99", "engine": "local"})
    check({"device": "cuda:99", "engine": "ray"})


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (DDIMScheduler(**SD, rescale_betas_zero_snr=True, timestep_spacing="trailing"), "alpha"),
        (EDMEulerScheduler(), "alphas_cumprod"),
    ],
)
def test_pipelines_that_cannot_be_inverted(scheduler, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "1000")
    stable_diffusion(scheduler).save_pretrained("model")
    done = CliRunner().invoke(app, ["invert", PEACH, "-o", "noise", "--model", "model"])
    assert done.exit_code == 1, done.output
    assert message in done.stderr
    assert not os.path.exists("noise") or os.listdir("noise") == []


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("make", "options", "warning"),
    [
        (lambda peach: peach.resize((1, 1)), [], None),
        (lambda peach: peach.resize((37, 51)), [], None),
        (lambda peach: peach.convert("RGBA"), [], None),
        (lambda peach: peach.convert("P"), [], None),
        (lambda peach: Image.fromarray(np.asarray(peach.convert("L")).astype(np.uint16) * 257), [], None),
        (lambda peach: peach, ["--prompt", " ".join(["peach"] * 40)], "truncated"),
        pytest.param(lambda peach: peach, ["--dtype", "float16"], "float16 on a CPU is slow", marks=pytest.mark.slow),
    ],
)
def test_unusual_but_fine(make, options, warning, peach, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "1000")
    monkeypatch.setattr(logging.getLogger("diffusers"), "propagate", True)
    make(peach).save("image.png")
    done = CliRunner().invoke(app, ["invert", "image.png", "-o", ".", "--steps", "2", *options])
    assert done.exit_code == 0, done.output
    assert Inversion.load("image.safetensors").latents.isfinite().all()
    said = done.stderr + caplog.text
    assert (warning in said) if warning else ("warning" not in said)


@pytest.mark.parametrize(
    "command",
    [
        *([], ["invert"], ["reconstruct"], ["edit"], ["interpolate"], ["compare"], ["analyze"], ["batch"], ["app"]),
        *(["doctor"], ["export"], ["cache", "ls"], ["cache", "rm"]),
        *(["watermark", "key"], ["watermark", "embed"], ["watermark", "detect"]),
    ],
)
def test_help_teaches(command):
    done = CliRunner().invoke(app, [*command, "--help"])
    assert done.exit_code == 0
    assert "invfast" in done.output or command == ["doctor"]
