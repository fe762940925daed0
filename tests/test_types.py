"""What an editor and mypy know: results have their types by `return_dict`, and README's code is well typed."""

import os
import re
import subprocess
import sys
from pathlib import Path

import invfast

ROOT = Path(__file__).parents[1]
CODE = """
import torch
from PIL import Image
from typing import Any
from invfast import Inversion, Reconstruction, edit, invert, reconstruct

def check(pipe: Any, image: Image.Image) -> None:
    inversion: Inversion = invert(pipe, image, num_inference_steps=4)
    x: tuple[torch.Tensor, torch.Tensor] = invert(pipe, image, num_inference_steps=4, return_dict=False)
    back: Reconstruction = reconstruct(pipe, inversion)
    (pictures,) = reconstruct(pipe, inversion, return_dict=False)
    edited: Reconstruction = edit(pipe, inversion, "a dog")
    (pictures,) = edit(pipe, inversion, "a dog", return_dict=False)
    wrong: Inversion = invert(pipe, image, return_dict=False)
"""


HEAVY = (
    "accelerate",
    "diffusers",
    "huggingface_hub",
    "matplotlib",
    "numpy",
    "PIL",
    "rich",
    "safetensors",
    "scipy",
    "torch",
)
SETTINGS = f"""[mypy]
strict = True
follow_imports = silent
[mypy-{",".join(f"{each}.*" for each in (*HEAVY, "transformers"))}]
follow_imports = skip
"""
"""Others' types are taken for granted: reading torch's takes minutes."""


def mypy(code, tmp_path):
    (tmp_path / "code.py").write_text(code)
    (tmp_path / "mypy.ini").write_text(SETTINGS)
    command = [sys.executable, "-m", "mypy", "code.py"]
    env = {**os.environ, "MYPYPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env, timeout=250).stdout


def test_results_have_their_types(tmp_path):
    readme = "\n".join(re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL))
    found = mypy(f"{readme}\n{CODE}", tmp_path)
    lines = [line for line in found.splitlines() if "error:" in line]
    assert len(lines) == 1, found
    assert '"tuple[Any, Any]", variable has type "Inversion"' in lines[0]


def test_names_are_found_by_completion():
    assert {"__version__", "demo", "edit", "interpolate", "invert", "reconstruct", "watermark"} <= set(dir(invfast))
    assert invfast.__version__.count(".") == 2
    assert (Path(invfast.__file__).parent / "py.typed").exists()
