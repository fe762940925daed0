"""An inversion on disk: bit for bit, or a named error."""

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from toy import distance

from invfast import Inversion, demo, invert, reconstruct
from invfast.inversion import _dtype
from invfast.methods import METHODS, Auto, FixedPoint, ForwardStart, to_dict
from invfast.stored import digest


@pytest.fixture(scope="module")
def inversion(tiny, samples):
    method = ForwardStart(1, FixedPoint(2, "anderson", "linear", tolerance=1e-3), seed=3)
    images = [samples[n].image for n in ("peach", "cat")]
    return invert(tiny, images, ["noto peach", "photo cat"], method=method, num_inference_steps=4, save_trajectory=True)


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if dataclasses.is_dataclass(a):
        return type(a) is type(b) and all(same(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    return a == b


def test_round_trip_is_bit_for_bit(inversion, tmp_path, tiny):
    inversion.save(tmp_path / "a.safetensors")
    loaded = Inversion.load(tmp_path / "a.safetensors")
    assert same(loaded, inversion)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        a, b = (reconstruct(tiny, inv, output_type="latent").latents for inv in (inversion, loaded))
    assert torch.equal(a, b)
    loaded.save(tmp_path / "a.safetensors")  # over the old one
    assert same(Inversion.load(tmp_path / "a.safetensors"), inversion)
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_one_image_of_a_batch(inversion, tiny, tmp_path):
    assert len(inversion) == 2
    assert same(inversion[:], inversion)
    assert same(inversion[-1], inversion[1:])
    with pytest.raises(IndexError):
        inversion[2]
    cat = inversion[1]
    assert cat.prompt == ["photo cat"]
    assert torch.equal(cat.state["noise"], inversion.state["noise"][1:])
    assert cat.trajectory.shape[1] == len(cat.stats.evaluations) == cat.stats.residual.shape[1] == 1
    cat.save(tmp_path / "cat")
    assert same(Inversion.load(tmp_path / "cat"), cat)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reconstruct(tiny, cat)
    alone, both = (reconstruct(tiny, inv, output_type="latent", dtype="float64").latents for inv in (cat, inversion))
    assert distance(alone, both[1:]) < 1e-10


@pytest.mark.parametrize("name", [name for name, each in METHODS.items() if not each.flow_only])
def test_a_bfloat16_run_comes_back(name, tiny, peach, tmp_path):
    inv = invert(tiny, peach, method=name, num_inference_steps=4, dtype="bfloat16")
    kept = {"forward_start": {"noise"}, "edict": {"partner"}, "bdia": {"previous"}, "obelm": {"slope"}}
    kept |= {"noise_maps": {"maps"}, "direct": {"path"}}
    kept |= {key: {"embeds"} for key in ("null_text", "prompt_tuning", "negative_prompt")}
    assert set(inv.state) == kept.get(name, set())
    inv.save(tmp_path / "x")
    assert same(Inversion.load(tmp_path / "x"), inv)


@pytest.mark.parametrize("name", list(METHODS))
def test_every_method_comes_back(name, inversion, tmp_path):
    dataclasses.replace(inversion, method=METHODS[name]).save(tmp_path / "x")
    assert Inversion.load(tmp_path / "x").method == METHODS[name]


@pytest.mark.parametrize("apart", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_bytes_of_the_header_and_a_hundred_of_the_body(apart, inversion, tmp_path):
    """Every byte of it where it may take its time."""
    small = dataclasses.replace(inversion, trajectory=None)
    small.save(tmp_path / "good")
    good = (tmp_path / "good").read_bytes()
    start = 8 + int.from_bytes(good[:8], "little")
    path, rng = tmp_path / "bad", random.Random(0)
    body = rng.sample(range(start, len(good)), 100)
    header = range(0, start, apart)
    damaged = [good[:i] for i in header]
    damaged += [good[:i] + bytes([good[i] ^ (1 << rng.randrange(8))]) + good[i + 1 :] for i in [*header, *body]]
    damaged += [good[:i] for i in body] + [good + b"x", b""]
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(ValueError, match="cannot be used"):
            Inversion.load(path)


def remade(inversion, tmp_path, change):
    """A file made wrong on purpose, its digest right."""
    inversion.save(tmp_path / "good")
    with safe_open(tmp_path / "good", "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    plain = json.loads(metadata["json"])
    change(metadata, tensors, plain)
    metadata["json"] = json.dumps(plain)
    metadata["sha256"] = digest(tensors, metadata["json"])
    save_file(tensors, tmp_path / "wrong", metadata)
    return tmp_path / "wrong"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m, t, p: m.update(schema="2"), "its schema is '2', this version of invfast reads 1"),
        (lambda m, t, p: m.update(format="pt"), "it is no invfast.inversion file"),
        (lambda m, t, p: t.pop("latents"), "latents"),
        (lambda m, t, p: t.update(latents=t["latents"].half()), "must be float32 or float64"),
        (lambda m, t, p: t.update(latents=t["latents"][0]), r"must be float32 or float64 \(B, C, h, w\)"),
        (lambda m, t, p: t.update(init_latents=t["init_latents"][:1].clone()), "init_latents is"),
        (lambda m, t, p: t["latents"].fill_(torch.nan), "latents are not finite"),
        (lambda m, t, p: t["schedule.alpha"].fill_(0.5), "descend strictly"),
        (lambda m, t, p: p.update(node=99), r"node must lie in 0\.\.4"),
        (lambda m, t, p: p.update(prompt=["a"]), "1 texts for 2 images"),
        (lambda m, t, p: p["method"].update({"class": "os.system"}), "unknown method class 'os.system'"),
        (lambda m, t, p: p["method"].update(speed=1), "do not fit this version"),
        (lambda m, t, p: p["schedule"].update(prediction_type="score"), "unknown prediction_type"),
        (lambda m, t, p: p.pop("stats"), "stats"),
    ],
)
def test_a_wrong_file_is_named(change, message, inversion, tmp_path):
    with pytest.raises(ValueError, match=message):
        Inversion.load(remade(inversion, tmp_path, change))


def test_missing_file_and_folder(inversion, tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        Inversion.load(tmp_path / "none")
    with pytest.raises(FileNotFoundError):
        inversion.save(tmp_path / "no" / "folder")


def test_reconstruct_raises_on_what_does_not_fit(inversion, tmp_path):
    inversion.save(tmp_path / "x")
    loaded = Inversion.load(tmp_path / "x")
    with pytest.raises(ValueError, match="network predicts 'sample'"):
        reconstruct(demo.load_pipeline("sample"), loaded)
    with pytest.raises(ValueError, match=r"expected \(B, 4, h, w\)"):
        reconstruct(demo.load_pipeline(), dataclasses.replace(loaded, latents=loaded.latents[:, :3]))


def test_a_write_killed_at_any_moment_leaves_a_whole_file(inversion, tmp_path):
    old, new, path = tmp_path / "old", tmp_path / "new", tmp_path / "out" / "x"
    inversion.save(old)
    dataclasses.replace(inversion, latents=inversion.latents + 1).save(new)
    path.parent.mkdir()
    wanted, rng = [Inversion.load(old), Inversion.load(new)], random.Random(0)
    command = [sys.executable, "-c", FORKING, str(old), str(new), str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        killed = 0
        for line in process.stdout:
            time.sleep(0.02 + rng.random() * 0.05)
            os.kill(int(line), signal.SIGKILL)
            killed += 1
            if path.exists():
                found = Inversion.load(path)
                assert any(same(found, each) for each in wanted)
    assert killed == 50
    assert path.exists()


# One start-up for all fifty: a writer is forked, killed, and the next one forked.
FORKING = """
import os, sys
import torch
torch.set_num_threads(1)
from invfast import Inversion
old, new, path = sys.argv[1:]
files = [Inversion.load(old), Inversion.load(new)]
for _ in range(50):
    pid = os.fork()
    if pid == 0:
        while True:
            for inversion in files:
                inversion.save(path)
    print(pid, flush=True)
    os.waitpid(pid, 0)
"""


def test_settings_of_numpy_are_saved_as_pythons(tmp_path):
    plain = to_dict(ForwardStart(np.int64(2), FixedPoint(np.int32(3), tolerance=np.float32(0.5))))
    assert json.loads(json.dumps(plain)) == to_dict(ForwardStart(2, FixedPoint(3, tolerance=0.5)))
    assert json.dumps(to_dict(Auto(budget=np.float32(1.5))))


@pytest.mark.parametrize("name", ["load", "foo", "Tensor"])
def test_a_dtype_that_is_none(name):
    with pytest.raises(ValueError, match=f"its stats name '{name}', which is no dtype of torch"):
        _dtype(name)
