"""What a build does; metadata lives in pyproject.toml.

CMake makes invfast/_C.abi3.so, which torch.ops.load_library loads: nothing imports it. Where it cannot be made the
install succeeds without, and invfast/_C.reason says why, for `invfast doctor`. An nvcc that cannot compile the CUDA
kernels costs these alone: the reason then stands beside a library for the CPU.

The headers come from the torch that will run the extension: one this interpreter imports (no build isolation), else the
one in its site-packages, which pip's isolation hides but does not move; INVFAST_TORCH=<folder of torch> names another.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
REASON = "_C.reason"
OLDEST_TORCH = (2, 11)


class NotBuiltError(Exception):
    """Why there is no extension."""


def find_torch():
    """The folder of an installed torch that has what the extension needs."""
    named, spec = os.environ.get("INVFAST_TORCH"), importlib.util.find_spec("torch")
    if named:
        folders = [Path(named)]
    else:
        imported = [Path(spec.origin).parent] if spec and spec.origin else []
        folders = [*imported, *(Path(sysconfig.get_path(kind)) / "torch" for kind in ("platlib", "purelib"))]
    for folder in folders:
        if (folder / "version.py").exists():
            break
    else:
        raise NotBuiltError(
            f"no torch to build against when invfast was installed, looked in {', '.join(map(str, folders))}"
        )
    version = re.search(r"__version__ = '((\d+)\.(\d+)[^']*)'", (folder / "version.py").read_text())
    if version is None or (int(version[2]), int(version[3])) < OLDEST_TORCH:
        raise NotBuiltError(f"torch {version[1] if version else '?'} in {folder} is older than {OLDEST_TORCH}")
    if not (folder / "include/torch/csrc/stable/ops.h").exists():
        raise NotBuiltError(f"torch {version[1]} in {folder} comes without C++ headers")
    return folder


def run(*command):
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(done.stdout, flush=True)
    if done.returncode:
        lines = [line.strip() for line in done.stdout.splitlines() if re.search("error", line, re.IGNORECASE)]
        raise NotBuiltError(f"{' '.join(map(str, command[:2]))} failed: {' '.join(lines[:3]) or done.stdout[-300:]}")


def compile_extension(target, folder):
    """Builds the library in a folder and copies it to `target`; says why it has no CUDA kernels, None where it has."""
    if shutil.which("cmake") is None:
        raise NotBuiltError("no cmake on PATH when invfast was installed")
    if not any(map(shutil.which, filter(None, [os.environ.get("CXX", "").split(" ")[0], "c++", "g++", "clang++"]))):
        raise NotBuiltError("no C++ compiler (c++, g++, clang++ or $CXX) on PATH when invfast was installed")
    torch = find_torch()
    why = without_cuda(torch)
    if why is None:
        try:
            build(torch, target, folder, "ON")
        except NotBuiltError as error:  # too old for an architecture or the C++ compiler, broken, half installed
            why = f"its CUDA kernels could not be compiled: {error}"
            print(f"once more without CUDA: {why}", flush=True)
    if why is not None:
        build(torch, target, folder, "OFF")
    return why


def without_cuda(torch):
    """Why the CUDA kernels are not compiled; None where they are to be."""
    if not (torch / "lib/libtorch_cuda.so").exists():  # it could not load what links to its CUDA library
        return f"the torch in {torch} is not built for CUDA"
    return None if shutil.which("nvcc") else "no nvcc on PATH when invfast was installed"


def build(torch, target, folder, cuda):
    shutil.rmtree(folder, ignore_errors=True)  # CMake would remember the torch and the compiler of the last build
    options = {"INVFAST_TORCH": torch, "INVFAST_CUDA": cuda, "INVFAST_TORCH_CUDA": cuda, "INVFAST_TESTS": "OFF"}
    run("cmake", "-S", ROOT, "-B", folder, *(f"-D{name}={value}" for name, value in options.items()))
    run("cmake", "--build", folder, "--target", "_C", "--parallel", os.cpu_count() or 1)
    shutil.copy2(folder / "_C.abi3.so", target)


class BuildWithCMake(build_ext):
    """Leaves the library beside the package, and the reason for what is missing: its CUDA kernels, or all of it."""

    def build_extension(self, ext):
        target = Path(self.get_ext_fullpath(ext.name))
        reason = target.with_name(REASON)
        target.parent.mkdir(parents=True, exist_ok=True)
        for old in (target, reason):
            old.unlink(missing_ok=True)
        try:
            why = compile_extension(target, Path(self.build_temp).resolve() / "cmake")
        except (NotBuiltError, OSError) as error:
            print(f"invfast is installed without its extension: {error}", flush=True)
            why = error
        if why is not None:
            reason.write_text(f"{why}\n")

    def copy_extensions_to_source(self):
        super().copy_extensions_to_source()
        built = Path(self.build_lib) / "invfast" / "_C.abi3.so"
        for name in (built.name, REASON):
            (ROOT / "invfast" / name).unlink(missing_ok=True)
            if built.with_name(name).exists():
                shutil.copy2(built.with_name(name), ROOT / "invfast" / name)


sources = [str(path.relative_to(ROOT)) for path in sorted((ROOT / "csrc").rglob("*.*"))]
setup(
    packages=[*find_packages(include=["invfast", "invfast.*"]), "invfast.kernels"],
    package_dir={"invfast.kernels": "kernels"},
    # Optional: setuptools accepts its absence. `depends` puts the sources into the sdist.
    ext_modules=[Extension("invfast._C", [], py_limited_api=True, optional=True, depends=["CMakeLists.txt", *sources])],
    cmdclass={"build_ext": BuildWithCMake},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
