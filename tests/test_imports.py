"""Who may import whom (DESIGN.md, section 5), and what `import invfast` takes along."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import invfast

ROOT = Path(invfast.__file__).parent

# Part of the package -> parts it may import. "" is the package itself, that is, its public names.
ALLOWED = {
    "schedule": {"ambient", "betas", "flows", "multistep", "plain"},
    "multistep": {"ambient", "flows"},
    "betas": set(),
    "flows": {"ambient"},
    "images": set(),
    "figures": {"files"},
    "files": set(),
    "tables": set(),
    "metrics": set(),
    "arguments": set(),
    "plain": set(),
    "rows": {"multistep", "schedule"},
    "locks": set(),
    "ops": {"kernels", "locks"},
    "methods": {"schedule", "rows", "ops", "plain", "counts"},
    "stored": {"plain"},
    "batches": {"plain", "stored"},
    "preview": {"figures", "images"},
    "inversion": {"ambient", "batches", "files", "schedule", "methods", "plain", "preview", "stored"},
    "digests": set(),
    "words": set(),
    "fingerprint": {"digests", "words"},
    "ambient": set(),
    "warned": set(),
    "provenance": {"schedule", "methods", "adapters", "denoiser", "ambient", "digests", "fingerprint", "stored"},
    "integrate": {"schedule"},
    "counts": set(),
    "store": set(),
    "executors": {"schedule", "counts"},
    "run": {
        "ambient",
        "integrate",
        "executors",
        "store",
        "methods",
        "adapters",
        "denoiser",
        "inversion",
        "schedule",
        "arguments",
        "ops",
    },
    "runtimes": {"digests", "locks", "store", "warned"},
    "denoiser": {"runtimes", "ambient", "counts", "digests", "fingerprint", "store", "warned", "words"},
    "adapters": {"arguments", "denoiser", "flows", "images", "runtimes", "locks", "store"},
    "api": {
        *("adapters", "ambient", "arguments", "grids", "inversion", "methods", "provenance", "run", "schedule"),
        "warned",
    },
    "returning": {
        *("adapters", "ambient", "arguments", "following", "inversion", "provenance", "reconstruction", "run"),
        "warned",
    },
    "editing": {
        *("adapters", "ambient", "arguments", "denoiser", "following", "inversion", "methods", "reconstruction"),
        *("run", "schedule", "store"),
    },
    "grids": {"adapters", "flows", "schedule", "warned"},
    "following": {"adapters", "arguments", "grids", "inversion", "warned"},
    "reconstruction": {"images", "inversion", "plain"},
    "preparation": {"adapters", "ambient", "flows", "runtimes"},
    "interpolation": {"denoiser", "inversion", "methods", "reconstruction", "returning"},
    "": set(),  # its names are imported when they are asked for
    "__main__": {"cli"},
    "analysis": {
        "adapters",
        "ambient",
        "api",
        "arguments",
        "files",
        "grids",
        "interpolation",
        "inversion",
        "methods",
        "metrics",
        "plain",
        "returning",
        "rows",
        "schedule",
    },
    "loading": {"arguments", "demo", "digests", "provenance"},
    "batch": {"api", "files", "images", "inversion", "loading", "methods", "plain", "watermark"},
    "watermark": {
        *("adapters", "ambient", "analysis", "api", "arguments", "files", "grids", "inversion", "methods", "plain"),
        *("reconstruction", "returning"),
    },
    "compare": {"api", "adapters", "figures", "images", "methods", "metrics", "plain", "returning", "tables"},
    "demo": {"", "schedule", "images", "compare", "methods"},
    "doctor": {"methods", "ops", "runtimes"},
    "app": {
        *("", "adapters", "analysis", "compare", "demo", "editing", "figures", "images", "inversion", "loading"),
        *("methods", "metrics", "watermark"),
    },
    "cli": {
        *("adapters", "arguments", "denoiser", "provenance", "schedule"),  # what they refuse
        *("", "analysis", "app", "batch", "compare", "demo", "doctor", "editing", "figures", "files", "images"),
        *("inversion", "loading", "methods", "runtimes", "tables", "watermark"),
    },
    "reference": set(),
}
OPTIONAL = {
    "triton",
    "nncf",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "openvino",
    "tensorrt",
    "tensorrt_rtx",
    "pyarrow",
    "ray",
    "gradio",
    "torchmetrics",
    "scipy",
    "matplotlib",
    "skimage",
    "pytest",
}
PACKAGES = {part: {"torch"} for part in ("reference", "ops", "methods", "rows", "digests")}
PACKAGES["analysis"] = {"torch", "numpy", "scipy", "matplotlib"}
PACKAGES["runtimes"] = {"torch", "nncf", "onnxruntime", "openvino", "safetensors", "filelock", "platformdirs"}


def imports(path):
    """Absolute names a file imports, those under TYPE_CHECKING left out."""
    tree = ast.parse(path.read_text())
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part_of(name):
    """The part of the package that "invfast.part.thing" names."""
    pieces = name.split(".")
    if len(pieces) < 2:
        return ""
    if pieces[1] == "kernels":  # lies beside the package in a checkout
        return "kernels"
    return pieces[1] if (ROOT / pieces[1]).is_dir() or (ROOT / f"{pieces[1]}.py").is_file() else ""


def files():
    for path in sorted(ROOT.rglob("*.py")):
        relative = path.relative_to(ROOT)
        part = relative.parts[0] if len(relative.parts) > 1 else relative.stem
        yield path, "" if part == "__init__" else part


def test_every_part_has_a_rule():
    assert {part for _, part in files()} == set(ALLOWED)


def test_import_rule():
    broken = []
    for path, part in files():
        for name in imports(path):
            top = name.split(".")[0]
            if top == "invfast" and part_of(name) not in ALLOWED[part] | {part}:
                broken.append(f"{path.relative_to(ROOT)} imports {name}")
            if top != "invfast" and part in PACKAGES and top not in PACKAGES[part] | set(sys.stdlib_module_names):
                broken.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not broken


def test_assert_checks_no_user_input():
    for path, _ in files():
        found = [node.lineno for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Assert)]
        assert not found, f"{path}: assert in the package, lines {found}"


def test_importing_takes_no_optional_dependency_along():
    # diffusers itself takes triton along where it is installed.
    code = (
        "import sys; from diffusers import DDIMScheduler, StableDiffusionPipeline; before = set(sys.modules); "
        f"import invfast, invfast.demo; print(*sorted({OPTIONAL!r} & (set(sys.modules) - before)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.parent)
    assert done.stdout.strip() == ""


def test_the_command_line_starts_without_torch():
    code = (
        "import sys, invfast, invfast.cli; assert set(invfast.__all__) <= set(dir(invfast)); invfast.__version__; "
        "print(*sorted({'torch', 'diffusers', 'transformers', 'numpy', 'PIL'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.parent)
    assert done.stdout.strip() == ""


def test_public_names():
    for name in invfast.__all__:
        assert getattr(invfast, name) is not None
    assert invfast.invert is importlib.import_module("invfast.api").invert
    assert invfast.demo.load_pipeline
    with pytest.raises(AttributeError, match="module 'invfast' has no attribute 'inver'"):
        _ = invfast.inver
