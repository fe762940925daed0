"""The torch-free C++ core: built by CMake, checked by ctest, clean under the sanitizers."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(
    not (shutil.which("cmake") and shutil.which("g++")), reason="no cmake or g++ here; the package works without"
)


@pytest.mark.parametrize("sanitize", ["OFF", "ON"])
def test_ctest(sanitize, tmp_path):
    commands = (
        ["cmake", "-S", ROOT, "-B", tmp_path, f"-DINVFAST_SANITIZE={sanitize}"],
        ["cmake", "--build", tmp_path, "--parallel", "2"],
        ["ctest", "--test-dir", tmp_path, "--output-on-failure"],
    )
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "warning" not in done.stdout + done.stderr
    assert "100% tests passed" in done.stdout
