"""The command line as a user runs it: processes, exit codes, streams."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import pytest
from PIL import Image
from typer.testing import CliRunner

from invfast import Inversion, demo
from invfast.cli import app

SCHEMA = json.loads((Path(__file__).parents[1] / "docs" / "cli.schema.json").read_text())
PEACH = str(demo.ROOT / "images" / "peach.png")


def invfast(*args, cwd):
    command = [sys.executable, "-c", "from invfast.cli import main; main()", *map(str, args)]
    env = {**os.environ, "NO_COLOR": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env)


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
    report = result(invfast("reconstruct", "noise/peach.safetensors", "-o", "new/peach.png", "--json", cwd=tmp_path))
    assert Image.open(tmp_path / report["image"]).size == (64, 64)


def test_compare(tmp_path):
    args = ("--methods", "ddim,warm_start", "--steps", 4, "-o", "grid.png", "--json")
    report = result(invfast("compare", PEACH, *args, cwd=tmp_path))
    assert [row["method"] for row in report["rows"]] == ["VAE round trip", "ddim", "warm_start"]
    assert report["rows"][2]["latent_psnr"] > report["rows"][1]["latent_psnr"]
    assert Image.open(tmp_path / "grid.png").size[0] > 6 * 96


def test_doctor(tmp_path):
    report = result(invfast("doctor", "--json", cwd=tmp_path))
    assert report["runtimes"]["eager"] == "available"
    assert "\x1b" not in invfast("doctor", cwd=tmp_path).stdout


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


@pytest.fixture
def files(tmp_path):
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "cut.png").write_bytes(Path(PEACH).read_bytes()[:2000])
    (tmp_path / "cut.safetensors").write_bytes(b"12345678")
    return tmp_path


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["invert", "none.png", "-o", "."], 1, "image 'none.png' does not exist"),
        (["invert", "empty.png", "-o", "."], 1, "is not one of PNG, JPEG, WEBP"),
        (["invert", "text.png", "-o", "."], 1, "is not one of PNG, JPEG, WEBP"),
        (["invert", "cut.png", "-o", "."], 1, "cannot be read"),
        (["invert", PEACH, PEACH, "-o", "."], 1, "two images share a file name"),
        (["invert", PEACH, "-o", ".", "--method", "easy-inv"], 1, "unknown method 'easy-inv'; expected one of 'ddim'"),
        (["invert", PEACH, "-o", ".", "--runtime", "warp"], 1, "unknown runtime 'warp'"),
        (["invert", PEACH, "-o", ".", "--steps", "0"], 1, "from 1 to 1000, got 0"),
        (["invert", PEACH, "-o", ".", "--steps", "1001"], 1, "from 1 to 1000, got 1001"),
        (["invert", PEACH, "-o", ".", "--steps", "fifty"], 2, "valid integer"),
        (["invert", PEACH, "-o", ".", "--guidance", "nan"], 1, "guidance_scale must be a finite number"),
        (["invert", PEACH, "-o", ".", "--dtype", "int8"], 1, "unknown dtype 'int8'"),
        (["invert", PEACH], 2, "Missing option"),
        (["reconstruct", "none", "-o", "x.png"], 1, "inversion file 'none' does not exist"),
        (["reconstruct", "cut.safetensors", "-o", "x.png"], 1, "cannot be used"),
        (["compare", PEACH, "--methods", "ddim,", "-o", "x.png"], 1, "unknown method ''"),
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
    assert done.stdout == ""
    assert sorted(os.listdir(files)) == before


@pytest.mark.parametrize("command", [[], ["invert"], ["reconstruct"], ["compare"], ["doctor"]])
def test_help_teaches(command):
    done = CliRunner().invoke(app, [*command, "--help"])
    assert done.exit_code == 0
    assert "invfast" in done.output or command == ["doctor"]
