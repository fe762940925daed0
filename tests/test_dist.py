"""What is handed on: who is cited, and an sdist and a wheel that work where nothing of the repository is."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]


def test_the_citation_is_of_this_version_and_names_both_papers():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert cited["cff-version"] == "1.2.0"
    assert (cited["version"], cited["license"]) == (project["version"], project["license"])
    papers = {each["identifiers"][0]["value"]: each for each in cited["references"]}
    assert papers.keys() == {"arXiv:2408.05159", "arXiv:2410.23530"}
    for paper in papers.values():
        assert paper["title"]
        assert all(author["family-names"] for author in paper["authors"])


def files(folder):
    found = (path.relative_to(ROOT) for path in (ROOT / folder).rglob("*") if path.is_file())
    return {str(path) for path in found if "__pycache__" not in path.parts and not path.name.startswith("_C.")}


def test_an_sdist_holds_what_a_build_needs_and_no_half_of_the_tests(tmp_path):
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    held = set((tmp_path / "invfast.egg-info/SOURCES.txt").read_text().splitlines())
    needed = {"CMakeLists.txt", "pyproject.toml", "setup.py", "README.md", "LICENSE", "CITATION.cff"}
    for folder in ("invfast", "kernels", "csrc"):
        needed |= files(folder)
    assert needed - held == set()
    assert [name for name in held if name.startswith(("tests/", "training/", "benchmarks/"))] == []


@pytest.mark.slow
def test_sdist_and_wheel_work_in_an_empty_folder(tmp_path):
    for name in ("build.__main__", "auditwheel"):
        pytest.importorskip(name, reason=f"needs {name.partition('.')[0]}: make test-slow installs the extra dist")
    if not (ROOT / ".git").exists():
        pytest.skip("make dist takes what is committed, and this is no clone")
    run = subprocess.run(
        [ROOT / ".ci" / "dist", tmp_path / "dist"],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, (run.stdout + run.stderr)[-3000:]
    wheel, sdist = sorted((tmp_path / "dist").iterdir(), key=lambda path: path.suffix != ".whl")
    assert sdist.name.startswith("invfast-")
    assert sdist.name.endswith(".tar.gz")
    assert "cp311-abi3-manylinux" in wheel.name
    assert run.stdout.count("installed and run in an empty folder") == 2
