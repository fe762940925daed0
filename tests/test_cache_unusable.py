"""A cache that cannot be used: "auto" does without it and warns, what is asked for by name says why, naming the remedy.

Each way is one that stops root too.
"""

import collections
import errno
import json
import os
import shutil

import pytest
import torch
from filelock import FileLock
from test_cache import ABOUT, INPUTS, unusable, write
from toy import distance
from typer.testing import CliRunner

from invfast import doctor, invert, prepare, release, runtimes
from invfast.cli import app
from invfast.runtimes import RUNTIMES, cache
from invfast.runtimes.cache import Cache, remember, remembered

GPU = torch.device("cuda", 0)
Usage = collections.namedtuple("Usage", "total used free")
QUICK = {"method": "ddim", "num_inference_steps": 1}


def refusing(error):
    """In place of what writes: as the operating system refuses."""

    def refuse(*args, **kwargs):
        raise error

    return refuse


def no_room(folder, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(2**40, 2**40, 1000))


def read_only(folder, monkeypatch):
    refuse = refusing(OSError(errno.EROFS, "Read-only file system"))
    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    monkeypatch.setattr(FileLock, "acquire", refuse)


def no_locks(folder, monkeypatch):
    monkeypatch.setattr(FileLock, "acquire", refusing(OSError(errno.ENOLCK, "No locks available")))


def old_filelock(folder, monkeypatch):
    monkeypatch.setattr(
        FileLock, "acquire", refusing(NotImplementedError("FileSystem does not appear to support flock"))
    )


def open_to_all(folder, monkeypatch):
    (folder / "cache").mkdir()
    (folder / "cache").chmod(0o777)


def anothers(folder, monkeypatch):
    (folder / "cache").mkdir(mode=0o700)
    uid = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: uid + 1)


WAYS = {
    name: lambda folder, monkeypatch, name=name: unusable(name, folder, monkeypatch)
    for name in ("under a file", "a file", "a dangling link", "no home")
}
WAYS |= {each.__name__: each for each in (no_room, read_only, no_locks, old_filelock, open_to_all, anothers)}


@pytest.fixture(params=WAYS)
def spoilt(request, tmp_path, monkeypatch):
    """A cache that cannot be used, for networks of any size."""
    monkeypatch.setenv("INVFAST_CACHE", str(tmp_path / "cache"))
    WAYS[request.param](tmp_path, monkeypatch)
    monkeypatch.setattr(runtimes, "LARGE", 0)
    release()


def test_auto_runs_eagerly_and_warns(spoilt, tiny, peach):
    with pytest.warns(UserWarning, match="running eagerly: .*INVFAST_CACHE") as caught:
        found = invert(tiny, peach, **QUICK, dtype="float32")
    assert found.stats.runtime == "eager"
    assert "INVFAST_CACHE" in found.stats.reason
    assert [warning.filename for warning in caught] == [__file__]  # where `invert` was called
    assert distance(found.latents, invert(tiny, peach, **QUICK, runtime="eager").latents) == 0


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_what_is_asked_for_by_name_raises(runtime, spoilt, tiny, peach):
    with pytest.raises(OSError, match="INVFAST_CACHE"):
        invert(tiny, peach, **QUICK, runtime=runtime)


def test_auto_in_int8_raises(spoilt, tiny, peach):
    with pytest.raises(OSError, match="INVFAST_CACHE"):
        invert(tiny, peach, **QUICK, dtype="int8")  # nothing else computes in it


def test_engines_are_left_out_and_warned_of(spoilt, monkeypatch):
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setattr(RUNTIMES[name], "unavailable", lambda: None)
        monkeypatch.setattr(RUNTIMES[name], "refuses", lambda device, dtype: None)
        monkeypatch.setattr(RUNTIMES[name], "cached", lambda *args: True)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(2**40, 0, 2**40))
    options = {"free": True, "parameters": 10**6, "opaque": None, "identity": lambda: "network"}
    if cache.unusable() is None:  # room is asked for what is exported only
        assert runtimes.resolve("auto", GPU, torch.float16, **options).runtime.name == "tensorrt"
        return
    with pytest.warns(UserWarning, match="engines are left out: .*INVFAST_CACHE"):
        found = runtimes.resolve("auto", GPU, torch.float16, **options)
    assert found.runtime.name in ("compile", "eager")
    assert "INVFAST_CACHE" in found.reason


def test_doctor_and_the_command_line_say_so(spoilt):
    if cache.unusable():
        assert "INVFAST_CACHE" in doctor._cache()
    done = CliRunner().invoke(app, ["cache", "ls", "--json"])
    if done.exit_code:
        assert "INVFAST_CACHE" in " ".join(done.stderr.split())
    else:  # it can be read
        assert json.loads(done.stdout)["entries"] == []


def test_nothing_is_remembered_and_nothing_fails(spoilt):
    remember(ABOUT, 1)
    assert remembered(ABOUT) in (None, 1)


def test_a_whole_entry_needs_no_writing(tmp_path, monkeypatch):
    """A cache on a read-only file system serves what it has; only what must be built is an error."""
    own = Cache(tmp_path / "cache")
    folder = own.entry(INPUTS, write, "toy")
    read_only(tmp_path, monkeypatch)
    assert own.entry(INPUTS, None, "toy") == own.find(INPUTS) == folder
    assert [entry.key for entry in own.entries()] == [folder.name]
    with pytest.raises(OSError, match=r"Read-only file system.*INVFAST_CACHE") as caught:
        own.entry({**INPUTS, "shape": []}, write, "toy")
    assert caught.value.errno == errno.EROFS
    with pytest.raises(OSError, match=r"Read-only file system.*INVFAST_CACHE"):
        own.remove(folder.name)


@pytest.mark.slow
def test_auto_takes_what_a_full_disk_has(tiny, peach, monkeypatch, recwarn):
    prepare(tiny, height=64, width=64, runtime="openvino")
    monkeypatch.setattr(runtimes, "LARGE", 0)
    no_room(None, monkeypatch)
    release()
    assert invert(tiny, peach, **QUICK, dtype="float32").stats.runtime == "openvino"
    assert not [each for each in recwarn if "INVFAST_CACHE" in str(each.message)]


@pytest.mark.parametrize(
    ("error", "free"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 2**40),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), 2**40),
        (RuntimeError("Error while serializing: No space left on device (os error 28)"), 2**40),  # safetensors'
        (RuntimeError("openvino could not convert Net: I/O error"), 1000),
    ],
)
def test_a_disk_that_fills_during_a_build(error, free, tmp_path, monkeypatch):
    own = Cache(tmp_path / "cache")

    def build(folder):
        write(folder)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(2**40, 2**40 - free, free))
        raise error

    with pytest.raises(OSError, match="INVFAST_CACHE") as caught:
        own.entry(INPUTS, build, "toy")
    assert caught.value.__cause__ is error
    assert {path.suffix for path in own.folder.iterdir()} == {".lock"}


def test_other_errors_of_a_build_are_its_own(tmp_path):
    for error in (RuntimeError("cannot be traced"), FileNotFoundError(errno.ENOENT, "g++"), KeyError("x")):
        with pytest.raises(type(error)) as caught:
            Cache(tmp_path / "cache").entry(INPUTS, refusing(error), "toy")
        assert caught.value is error


def test_room_is_known_before_a_build(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(2**40, 2**40, 3 * 10**9))
    with pytest.raises(OSError, match=r"3\.0 GB are free where 6\.9 GB are needed.*INVFAST_CACHE"):
        Cache(tmp_path / "cache").entry(INPUTS, None, "toy", room=6_900_000_000)
    assert Cache(tmp_path / "cache").entry(INPUTS, write, "toy", room=2_900_000_000)
