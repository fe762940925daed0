"""ONNX file -> TensorRT engine, in a child process, so that its memory goes back; the child runs this file.

The network is strongly typed: every tensor is computed in the dtype the file gives it, none is lowered behind our back.
TensorRT-RTX needs no GPU to build for one; TensorRT builds for the GPU it finds.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

Profile = dict[str, tuple[list[int], list[int], list[int]]]
"""By input: the least, the best and the greatest shape."""


def in_child(package: str, onnx: Path, engine: Path, profile: Profile, capability: int) -> None:
    """Writes an engine.

    Args:
        package: "tensorrt" or "tensorrt_rtx".
        onnx: the file to read.
        engine: the file to write.
        profile: shapes of all inputs that have open axes.
        capability: of the GPU it is for, 86 for 8.6.

    Raises:
        RuntimeError: the child failed; carries the end of what it said.
    """
    order = [sys.path, package, str(onnx), str(engine), profile, capability]
    # -P: this file's own folder is no place to import from, it has namesakes of libraries
    done = subprocess.run([sys.executable, "-P", __file__], input=json.dumps(order).encode(), capture_output=True)
    if done.returncode:
        said = (done.stdout + done.stderr).decode(errors="replace").strip().splitlines()
        raise RuntimeError(f"{package} could not build an engine for SM{capability}: " + "\n".join(said[-3:]))


def build(package: str, onnx: str, engine: str, profile: Profile, capability: int) -> None:
    """As `in_child`, in this process."""
    trt = importlib.import_module(package)
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(onnx):
        raise RuntimeError("; ".join(parser.get_error(j).desc() for j in range(parser.num_errors)))
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # float32 means float32
    if package == "tensorrt_rtx":
        config.num_compute_capabilities = 1
        config.set_compute_capability(trt.ComputeCapability.__members__[f"SM{capability}"], 0)
    shapes = builder.create_optimization_profile()
    for name, (least, best, greatest) in profile.items():
        shapes.set_shape(name, least, best, greatest)
    config.add_optimization_profile(shapes)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise RuntimeError("the builder gave no engine")
    Path(engine).write_bytes(plan)


if __name__ == "__main__":
    path, *order = json.load(sys.stdin)
    sys.path[:] = path
    build(*order)
