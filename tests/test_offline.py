"""SECURITY.md: no network, and no file but in the cache, the output and the folder for temporary files.

Processes run with a library (watch.c) in front of the C library's calls, so that C++ code and child processes are seen
like Python's; what telemetry looks at to spare a CI is taken out of their environment, and their home is new.
"""

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import invfast
from invfast import demo

PEACH = str(demo.ROOT / "images" / "peach.png")
CLI = """
import sys, time
from invfast.cli import app
code = app(sys.argv[2:], standalone_mode=False)
time.sleep(int(sys.argv[1]))
sys.exit(code)
"""
LINGER = 15
"""Seconds that some processes stay: ONNX Runtime's first report was seen 9 s after it was imported."""


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if sys.platform != "linux" or compiler is None:
        pytest.skip("watching a process takes Linux and a C compiler (apt install gcc)")
    path = tmp_path_factory.mktemp("watch") / "watch.so"
    source = str(Path(__file__).with_name("watch.c"))
    done = subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(path), source, "-ldl"], capture_output=True)
    if done.returncode:
        pytest.skip(f"watch.c does not compile here: {done.stderr.decode()[-300:]}")
    return path


@pytest.fixture
def watched(library, tmp_path):
    """Runs Python code: (what reached for a network, files outside the folders that may be written to)."""
    for name in ("home", "tmp", "out", "cache"):
        (tmp_path / name).mkdir(mode=0o700)
    allowed = (*(f"{tmp_path / name}/" for name in ("tmp", "out", "cache")), "/dev/", "/proc/")
    log = tmp_path / "log"
    env = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    env |= {"HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "tmp"), "INVFAST_CACHE": str(tmp_path / "cache")}
    env |= {"PYTHONPATH": os.pathsep.join([str(Path(invfast.__file__).parents[1]), str(Path(__file__).parent)])}
    env |= {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
    env |= {"LD_PRELOAD": str(library), "WATCH_LOG": str(log)}

    def run(code, *args, **more):
        command = [sys.executable, "-c", code, *map(str, args)]
        done = subprocess.run(command, cwd=tmp_path / "out", env={**env, **more}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found = [line.partition(" ")[::2] for line in log.read_text().splitlines()]
        # A file without a name is opened as its folder.
        files = {what for kind, what in found if kind == "file" and not f"{what}/".startswith(allowed)}
        files |= {str(path) for path in (tmp_path / "home").rglob("*")}
        return [each for each in found if each[0] != "file"], sorted(files)

    return run


REACHES = """
import ctypes, os, socket, subprocess, sys
subprocess.run([sys.executable, "-S", "-c", "import socket; socket.socket().connect_ex(('192.0.2.7', 443))"])
ctypes.CDLL(None).gethostbyname(b"c.invalid")
try: socket.getaddrinfo("python.invalid", 443)
except OSError: pass
udp = socket.socket(type=socket.SOCK_DGRAM)
for call in (lambda: udp.connect(("127.0.0.53", 53)), lambda: udp.sendto(b"", ("192.0.2.8", 9))):
    try: call()
    except OSError: pass
socket.getaddrinfo("localhost", 80), socket.getaddrinfo("127.0.0.1", 80)
udp.sendto(b"", ("127.0.0.1", 9))
home = os.path.expanduser("~/")
os.mkdir(home + "made")
open(home + "made/python", "w").close(), open("here", "w").close(), open(sys.executable).close()
ctypes.CDLL(None).fopen((home + "c").encode(), b"w")
os.chdir(home), os.close(os.open("relative", os.O_CREAT | os.O_WRONLY)), os.rename("relative", "renamed")
os.remove("renamed")
"""


def test_the_watch_sees_what_it_should(watched):
    """Python's and C's calls, those of children, and a name server on this machine; nothing that stays here."""
    reached, files = watched(REACHES)
    wanted = [("connect", "192.0.2.7 443"), ("query", "c.invalid"), ("query", "python.invalid")]
    assert reached == [*wanted, ("connect", "127.0.0.53 53"), ("send", "192.0.2.8 9")]
    assert [Path(path).name for path in files] == ["c", "made", "python", "relative", "renamed"]


def test_inverting_eagerly(watched):
    """Where ONNX Runtime is installed, diffusers imports it here."""
    args = ("invert", PEACH, "-o", "noise", "--steps", 2, "--runtime", "eager")
    assert watched(CLI, 0, *args) == ([], [])


def test_what_the_user_says_is_kept(monkeypatch):
    for said, wanted in ((None, "1"), ("0", "0"), ("", "")):
        monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
        if said is not None:
            monkeypatch.setenv("ORT_DISABLE_TELEMETRY", said)
        importlib.reload(invfast)
        assert os.environ["ORT_DISABLE_TELEMETRY"] == wanted


LOADED_BY_DIFFUSERS = """
import sys, time
from diffusers import DDIMScheduler, StableDiffusionPipeline
import invfast
from invfast import demo
pipe = StableDiffusionPipeline.from_pretrained(
    demo.ROOT / "emoji64", safety_checker=None, requires_safety_checker=False, local_files_only=True
)
found = invfast.invert(pipe, demo.load_images()["peach"].image, num_inference_steps=2)
assert invfast.reconstruct(pipe, found).images
"""
COMMANDS = {
    "doctor": ("doctor",),
    "compare": ("compare", PEACH, "--steps", 2, "-o", "grid.png"),
    "compile": ("invert", PEACH, "-o", "noise", "--steps", 2, "--runtime", "compile"),
    "openvino": ("invert", PEACH, "-o", "noise", "--steps", 2, "--runtime", "openvino"),
    "int8": ("invert", PEACH, "-o", "noise", "--steps", 2, "--runtime", "openvino", "--dtype", "int8"),
    "onnxruntime": ("invert", PEACH, "-o", "noise", "--steps", 2, "--runtime", "onnxruntime"),
    "tensorrt_rtx": ("export", "--size", 64, "--runtime", "tensorrt_rtx", "--dtype", "float16", "--capability", 86),
}
NEEDS = {"int8": "nncf", "openvino": "openvino", "onnxruntime": "onnxruntime", "tensorrt_rtx": "tensorrt_rtx"}


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", COMMANDS)
def test_every_runtime(name, watched):
    """With all of them installed; and the process lingers for what is reported late."""
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    assert watched(CLI, LINGER, *COMMANDS[name]) == ([], [])


@pytest.mark.slow
def test_diffusers_imported_first(watched):
    """Its classes may be imported before invfast; ONNX Runtime comes with the first pipeline that is loaded."""
    assert watched(f"{LOADED_BY_DIFFUSERS}\ntime.sleep({LINGER})") == ([], [])


@pytest.mark.slow
def test_reports_would_be_seen(watched):
    """What the tests above would find if nothing were switched off, as far as this ONNX Runtime reports at all."""
    onnxruntime = pytest.importorskip("onnxruntime")
    if tuple(map(int, onnxruntime.__version__.split(".")[:2])) < (1, 29):
        pytest.skip("ONNX Runtime reports on Linux from 1.29 on")
    reached, files = watched(f"import onnxruntime, time; time.sleep({LINGER})")
    assert any(kind == "query" and "events.data" in host for kind, host in reached)
    assert any("onnxruntime" in path for path in files)
