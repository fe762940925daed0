"""The documentation builds without a warning, its links lead somewhere and every code block runs."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SLOW = ("runtimes.md 0", "interpolation.md 0", "interpolation.md 1", "analysis.md 2")
"""An export, many pictures, and sixty-four images."""
BLOCKS = [
    pytest.param(block, id=f"{page.name} {i}", marks=[pytest.mark.slow] if f"{page.name} {i}" in SLOW else [])
    for page in PAGES
    for i, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
]


@pytest.mark.parametrize("block", BLOCKS)
def test_code_block(block, tmp_path, monkeypatch, own_modules):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    names = {"__name__": "example"}
    exec(compile(block, "example", "exec"), names)
    if "inversion" in names:
        assert torch.isfinite(names["inversion"].latents).all()


def test_links_of_the_readme():
    for path in re.findall(r"\]\(([^)#:]+)\)", (ROOT / "README.md").read_text()):
        assert (ROOT / path).is_file(), path


@pytest.mark.parametrize("folder", ["benchmarks", "tests"])
def test_every_part_says_what_it_shows(folder):
    said = re.findall(r"`([\w./]+)`", (ROOT / folder / "README.md").read_text())
    parts = {path.stem for path in (ROOT / folder).glob("*.py")}
    parts |= {path.parent.name for path in (ROOT / folder).glob("*/__init__.py")}
    assert not sorted(parts - {"__init__"} - {Path(name).stem for name in said})
    assert not [name for name in said if name.endswith((".py", "/")) and not (ROOT / folder / name).exists()]


def test_the_site_builds_without_a_warning(tmp_path):
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    command = [sys.executable, "-m", "zensical", "build", "--strict"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No issues found" in done.stdout + done.stderr
    reference = (tmp_path / "out" / "docs" / "reference" / "index.html").read_text()
    for name in ("invert", "reconstruct", "Schedule", "FixedPoint", "ForwardStart"):
        assert f"{name}</span>" in reference or f">{name}<" in reference, name
