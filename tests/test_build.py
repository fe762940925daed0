"""What an installation makes of the machine it is on: which torch, triton and nvcc it goes with, and what they cost."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from unittest import mock

import pytest
from packaging.requirements import Requirement

from invfast.ops import extension

ROOT = Path(__file__).parents[1]
OLDEST = "2.11"
# What the registry's metadata of each torch asks of triton: `torch>=2.11` promises them all.
TRITON = {"2.11.0": "3.6.0", "2.12.1": "3.7.1", "2.13.0": "3.7.1", "2.14.1": "3.8.0", "2.15.0": "3.9.0"}


@pytest.mark.parametrize("version", TRITON)
def test_every_extra_goes_with_the_triton_of_every_promised_torch(version):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (torch,) = (r for r in map(Requirement, project["dependencies"]) if r.name == "torch")
    assert version in torch.specifier
    extras = {name: list(map(Requirement, given)) for name, given in project["optional-dependencies"].items()}
    wanted = [(name, r) for name, given in extras.items() for r in given if r.name == "triton"]
    assert {name for name, _ in wanted} >= {"triton", "test"}
    assert [name for name, r in wanted if TRITON[version] not in r.specifier] == []


@pytest.fixture
def setup_py(monkeypatch, tmp_path):
    """setup.py as a module that builds nothing, beside a torch with CUDA and an nvcc."""
    spec = importlib.util.spec_from_file_location("setup_py", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    with mock.patch("setuptools.setup"):
        spec.loader.exec_module(module)
    torch = tmp_path / "torch"
    for name in ("include/torch/csrc/stable/ops.h", "lib/libtorch_cuda.so", "version.py"):
        (torch / name).parent.mkdir(parents=True, exist_ok=True)
        (torch / name).touch()
    (torch / "version.py").write_text(f"__version__ = '{OLDEST}.0+cu130'\n")
    monkeypatch.setenv("INVFAST_TORCH", str(torch))
    monkeypatch.setattr(module.shutil, "which", lambda name: f"/bin/{name}")
    return module


def builder(setup_py, runs, stage="", said=""):
    """Stands in for setup.py's `run`: makes the library, or fails at a stage of a build with CUDA."""

    def run(*command):
        runs.append(list(map(str, command)))
        configured = next(each for each in reversed(runs) if "-S" in each)
        kind = "cuda" if "-DINVFAST_CUDA=ON" in configured else "cpu"
        if kind == "cuda" and stage in runs[-1]:
            raise setup_py.NotBuiltError(said)
        if "--build" in runs[-1]:
            Path(runs[-1][2]).mkdir(parents=True)
            (Path(runs[-1][2]) / "_C.abi3.so").write_text(kind)

    return run


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        ("-S", "nvcc fatal : Unsupported gpu architecture 'compute_100'"),
        ("-S", "the CUDA compiler is not able to compile a simple test program"),
        ("--build", "error: -- unsupported GNU version! gcc versions later than 12 are not supported!"),
        ("--build", "csrc/core/cuda.cuh: error: cuda_fp16.h: No such file or directory"),
    ],
)
def test_an_nvcc_that_fails_costs_only_the_cuda_kernels(setup_py, monkeypatch, tmp_path, stage, said):
    monkeypatch.setattr(setup_py, "run", builder(setup_py, [], stage, said))
    target = tmp_path / "_C.abi3.so"
    why = setup_py.compile_extension(target, tmp_path / "cmake")
    assert target.read_text() == "cpu"
    assert said in why

    (tmp_path / "_C.reason").write_text(f"{why}\n")
    monkeypatch.setattr(extension, "LIBRARY", target)
    monkeypatch.setattr(extension, "REASON", tmp_path / "_C.reason")
    monkeypatch.setattr(extension, "load", lambda: None)
    monkeypatch.setattr("torch._C._dispatch_has_kernel_for_dispatch_key", lambda *_: False)
    found = extension.unavailable("cuda")
    assert found.startswith("_C.abi3.so was built without kernels for cuda")
    assert said in found


def test_an_nvcc_that_works_compiles_once(setup_py, monkeypatch, tmp_path):
    runs = []
    monkeypatch.setattr(setup_py, "run", builder(setup_py, runs))
    assert setup_py.compile_extension(tmp_path / "_C.abi3.so", tmp_path / "cmake") is None
    assert (tmp_path / "_C.abi3.so").read_text() == "cuda"
    assert len(runs) == 2


def test_a_failure_without_cuda_is_still_one(setup_py, monkeypatch, tmp_path):
    def fail(*_):
        raise setup_py.NotBuiltError("no space left on device")

    monkeypatch.setattr(setup_py, "run", fail)
    with pytest.raises(setup_py.NotBuiltError, match="no space left"):
        setup_py.compile_extension(tmp_path / "_C.abi3.so", tmp_path / "cmake")


NVCC = """#!/bin/sh
if [ "$1" = --list-gpu-arch ]; then printf 'compute_%s\\n' {known}; exit; fi
case "$*" in {unknown}) echo "nvcc fatal : Unsupported gpu architecture" >&2; exit 1;; esac
exec {nvcc} "$@"
"""


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("nvcc") and shutil.which("cmake")), reason="no nvcc or cmake here")
@pytest.mark.parametrize(
    ("known", "unknown", "chosen"),
    [
        ("75 80 90 100 120", "nothing", "80-real;90-real;100"),
        ("75 80 86 90", "*compute_100*", "80-real;90"),
        ("75 80 86", "*compute_90*|*compute_100*", "80"),
        ("90 100 1000", "*compute_80*", "90-real;100"),
        ("50 70", "*compute_80*", None),
    ],
)
def test_architectures_that_this_nvcc_knows(tmp_path, known, unknown, chosen):
    nvcc = tmp_path / "nvcc"
    nvcc.write_text(NVCC.format(known=known, unknown=unknown, nvcc=shutil.which("nvcc")))
    nvcc.chmod(0o755)
    command = ["cmake", "-S", ROOT, "-B", tmp_path / "build", "-DINVFAST_TESTS=OFF", f"-DCMAKE_CUDA_COMPILER={nvcc}"]
    said = subprocess.run(command, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    assert (f"CUDA kernels for {chosen}\n" if chosen else "no CUDA kernels") in said.stdout


def symbols(library, which):
    done = subprocess.run(["nm", "-D", f"--{which}-only", library], capture_output=True, text=True, check=True)
    return {line.split()[-1].split("@")[0] for line in done.stdout.splitlines()}


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("cmake") and shutil.which("g++")), reason="no cmake or g++ here")
def test_the_binding_compiles_against_the_oldest_promised_torch(tmp_path):
    """Half a gigabyte from the registry, of which the headers and the symbols of the libraries count."""
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-cache-dir"]
    done = subprocess.run([*pip, "-d", tmp_path, f"torch=={OLDEST}.*"], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no torch {OLDEST} from the registry: {done.stderr[-300:]}")
    with zipfile.ZipFile(next(tmp_path.glob("torch-*.whl"))) as wheel:
        needed = re.compile(r"torch/(include/.*|lib/lib(torch|torch_cpu|c10)\.so|version\.py)")
        wheel.extractall(tmp_path, [name for name in wheel.namelist() if needed.fullmatch(name)])
    torch, build = tmp_path / "torch", tmp_path / "build"
    options = [f"-DINVFAST_TORCH={torch}", "-DINVFAST_CUDA=OFF", "-DINVFAST_TESTS=OFF"]
    for command in (["-S", ROOT, "-B", build, *options], ["--build", build]):
        done = subprocess.run(["cmake", *command], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    wanted = {name for name in symbols(build / "_C.abi3.so", "undefined") if re.search("torch|c10|_ZN2at", name)}
    assert wanted
    assert {name for name in wanted if not name.startswith(("aoti_torch_", "torch_"))} == set()
    assert wanted - symbols(torch / "lib/libtorch_cpu.so", "defined") == set()
