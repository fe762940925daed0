"""Inversion files that say something else than `save` would: the documented errors, whatever is in them."""

import copy
import json
import os
import random
import struct

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save
from tiny import stable_diffusion

from invfast import Inversion, invert
from invfast.methods import METHODS, FixedPoint, ForwardStart, ReNoise, from_dict
from invfast.stored import digest


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """(metadata, tensors, values) of a small file with all that a file can have."""
    path = tmp_path_factory.mktemp("good") / "x"
    x = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    method = ForwardStart(1, FixedPoint(2, "anderson", "linear", tolerance=1e-3))
    options = {"method": method, "num_inference_steps": 4, "save_trajectory": True, "negative_prompt": "b"}
    invert(stable_diffusion(), x, ["a", "cat"], **options).save(path)
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        return file.metadata(), tensors, json.loads(file.metadata()["json"])


def written(path, metadata, tensors, text):
    """A file whose digest is right, so that the checks behind it are reached."""
    path.write_bytes(save(tensors, {**metadata, "json": text, "sha256": digest(tensors, text)}))
    return path


def refused(path, message="cannot be used"):
    """The one error there is for a file that exists; it names the file."""
    with pytest.raises(ValueError, match=message) as caught:
        Inversion.load(path)
    assert str(caught.value).startswith(f"inversion file {str(path)!r} cannot be used: ")


def places(values, at=()):
    """The paths to all parts of nested values, themselves first."""
    yield at
    if isinstance(values, (dict, list)):
        for key in values if isinstance(values, dict) else range(len(values)):
            yield from places(values[key], (*at, key))


def put(values, at, new):
    if not at:
        return new
    values = copy.deepcopy(values)
    inner = values
    for key in at[:-1]:
        inner = inner[key]
    if new is KeyError:
        del inner[at[-1]]
    else:
        inner[at[-1]] = new
    return values


WRONG = {
    ("node",): (True, 1.0, "1", None, -1, 5, 10**400, [1], float("nan")),
    ("prompt",): ({"a": "b", "c": "d"}, ["a", 1], "ab", ["a"], [["a"], ["b"]], 3, [None, None]),
    ("negative_prompt",): ({}, [1, 2], "ab", False),
    ("guidance_scale",): ("7.5", None, True, float("nan"), float("inf"), -1.0, [1.0], 10**400),
    ("stats", "evaluations"): ("12", [1], [1, 2, 3], ["1", "2"], [1.0, 2.0], [True, False], [-1, 1], 2, None, {}),
    ("stats", "samples"): ("8", 1.5, None, True, -1, 10**400),
    ("stats", "seconds"): ("1", None, float("nan"), float("inf"), -1, 10**400),
    ("stats", "runtime"): (None, 3, ["eager"], {}),
    ("stats", "dtype"): ("load", "Tensor", "_dynamo", "", None, 3, ["float32"], "torch.float32"),
    ("stats", "device"): (None, 0, ["cpu"]),
    ("stats", "kernels"): (None, 1),
    ("stats", "cuda_graph"): (1, "yes", None),
    ("stats", "reason"): (None, 1),
    ("stats", "precomputed"): ("prompt", [1], None, {"prompt": 1}),
    ("stats", "speed"): (1,),
    ("stats",): ([], None, "x", {}),
    ("schedule", "prediction_type"): (None, 1, ["epsilon"], "score"),
    ("schedule", "compat"): ("old", 1, False, ["diffusers"]),
    ("schedule", "origin"): (None, [], "x"),
    ("schedule", "dropped"): (-1, 1.5, True, None, "1", 10**400),
    ("schedule", "beyond"): (-1, 1.5, True, None, "1", 10**400),
    ("schedule",): (None, [], "x", 3),
    ("method", "class"): (None, 1, ["DDIM"], {"class": "DDIM"}, "os.system", "Method"),
    ("method", "steps"): (1.0, True, "1", None, [1], 0, 10**400),
    ("method", "seed"): ("x", None, 1.5, True, [1], 10**400),
    ("method", "method"): ("ddim", None, [], {}, {"class": "Auto", "budget": "much"}),
    ("method", "method", "mixing"): (None, 1, ["plain"], {}),
    ("method", "method", "warm_start"): (1, ["linear"], {}),
    ("method", "method", "tolerance"): ("a", None, float("nan"), [0], True, -1, 10**400),
    ("method", "speed"): (1,),
    ("method",): (None, [], "ddim", 3),
    ("provenance",): (None, [], "x", 3),
    ("provenance", "prompt_embeds"): ("ab", 3, ["a"], [1, 2], {}),
    ("state",): ({},),
    ("latents",): ([],),
    (): ([], None, "x", 3, True, {}),
}


@pytest.mark.parametrize("at", WRONG, ids=".".join)
def test_a_value_of_another_kind(at, good, tmp_path):
    metadata, tensors, values = good
    for new in WRONG[at]:
        refused(written(tmp_path / "x", metadata, tensors, json.dumps(put(values, at, new))))
    if len(at) == 1 and at[0] in values:
        refused(
            written(tmp_path / "x", metadata, tensors, json.dumps(put(values, at, KeyError))), f"it lacks '{at[0]}'"
        )


DEEP = "[" * 100_000 + "]" * 100_000
TEXTS = [
    "",
    "{",
    "NaN",
    DEEP,
    '{"a": ' * 50_000 + "1" + "}" * 50_000,
    "9" * 5000,
    '"\\ud800"',
    "\x00",
]


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_json_that_is_none(text, good, tmp_path):
    metadata, tensors, _ = good
    refused(written(tmp_path / "x", metadata, tensors, text))


def test_methods_nested_without_end(good, tmp_path):
    metadata, tensors, values = good
    method = {"class": "DDIM"}
    for _ in range(300):
        method = {"class": "ForwardStart", "steps": 1, "method": method}
    text = json.dumps({**values, "method": None}).replace('"method": null', f'"method": {json.dumps(method)}')
    deep = '{"class": "ForwardStart", "method": ' * 900 + "{}" + "}" * 900
    refused(written(tmp_path / "x", metadata, tensors, text.replace(json.dumps(method), deep)))


TENSORS = {
    "latents": [
        lambda x: x.long(),
        lambda x: x.bfloat16(),
        lambda x: x.to(torch.complex64),
        lambda x: x > 0,
        lambda x: x.to(torch.float8_e4m3fn),
        lambda x: x[:0],
        lambda x: x[:, :0],
        lambda x: x[:1],
        lambda x: x.flatten(),
        lambda x: x.sum(),
        lambda x: x[None],
        lambda x: x.index_fill(0, torch.tensor(0), torch.inf),
    ],
    "init_latents": [lambda x: x.double(), lambda x: x[..., :3], lambda x: x * torch.nan, lambda x: x[:, None], None],
    "state.noise": [lambda x: x.double(), lambda x: x[..., :3], lambda x: x * torch.nan, lambda x: x[:, None][:, :0]],
    "trajectory": [
        lambda x: x.double(),
        lambda x: x[0],
        lambda x: x[:, :1],
        lambda x: x[:0],
        lambda x: torch.cat([x, x]),
    ],
    "residual": [
        lambda x: x.float(),
        lambda x: x[:, :1],
        lambda x: x[0],
        lambda x: x.to(torch.complex64),
        lambda x: x.sum(),
    ],
    "schedule.t": [
        lambda t: t.to(torch.complex64),
        lambda t: t > 0,
        lambda t: t.half(),
        lambda t: t[:-1],
        lambda t: t[None],
        lambda t: t.flip(0),
        lambda t: t[:0],
        lambda t: t * torch.nan,
        None,
    ],
    "schedule.alpha": [
        lambda a: a.float(),
        lambda a: a.to(torch.complex64),
        lambda a: a.long(),
        lambda a: a[:-1],
        lambda a: a[None],
        lambda a: a * torch.nan,
        lambda a: a.flip(0),
        lambda a: a + 1,
        lambda a: a.new_zeros(0),
        None,
    ],
    "schedule.source_alpha": [lambda a: a.float(), lambda a: a[:-1], lambda a: a * torch.nan, lambda a: a - 0.3, None],
    "state.latents": [lambda _: torch.zeros(2, 4, 4, 4)],
    "state.": [lambda _: torch.zeros(2, 4, 4, 4)],
    "state.embeds": [
        lambda _: torch.zeros(2, 4, 4),
        lambda _: torch.zeros(1, 1, 4, 4),
        lambda _: torch.zeros(2, 0, 4, 4),
    ],
    "weights": [lambda _: torch.zeros(1)],
    "": [lambda _: torch.zeros(1)],
}


@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_that_does_not_fit(name, good, tmp_path):
    metadata, tensors, values = good
    for change in TENSORS[name]:
        other = {key: value for key, value in tensors.items() if key != name}
        if change is not None:
            other[name] = change(tensors.get(name)).contiguous()
        refused(written(tmp_path / "x", metadata, other, json.dumps(values)))


@pytest.mark.parametrize("missing", ["format", "schema", "json", "sha256"])
def test_metadata_that_is_missing(missing, good, tmp_path):
    metadata, tensors, _ = good
    (tmp_path / "x").write_bytes(save(tensors, {key: value for key, value in metadata.items() if key != missing}))
    refused(tmp_path / "x")


def test_no_metadata_and_no_header(good, tmp_path):
    path = tmp_path / "x"
    path.write_bytes(save(good[1]))
    refused(path, "it is no invfast.inversion file")
    header = json.dumps({"__metadata__": {"format": "invfast.inversion", "schema": "1"}}).encode()
    for content in (
        b"",
        b"\0" * 8,
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 2) + b"{}",
        struct.pack("<Q", 2) + b"\xff\xfe",
        struct.pack("<Q", len(header)) + header,
        b"\x80\x04\x95not a pickle either",
    ):
        path.write_bytes(content)
        refused(path)


def test_what_was_loaded_does_not_change_with_the_file(good, tmp_path):
    metadata, tensors, _ = good
    path = written(tmp_path / "x", metadata, tensors, metadata["json"])
    found, size = Inversion.load(path), path.stat().st_size
    with path.open("r+b") as file:
        file.write(b"\1" * size)
    for name in ("latents", "init_latents"):
        assert torch.equal(getattr(found, name), tensors[name])
    assert torch.equal(found.trajectory, tensors["trajectory"])


def test_what_is_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        Inversion.load(tmp_path / "none")
    refused(tmp_path, "it is a folder")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")  # opening it would wait for ever
        refused(tmp_path / "pipe", "no file")


def test_settings_are_held_to_their_kinds():
    for name, method in METHODS.items():
        assert method == METHODS[name]
    for values in (
        {"class": "ReNoise", "early_window": [0, "5"]},
        {"class": "ReNoise", "early_window": [0, True]},
        {"class": "ReNoise", "early_window": "05"},
        {"class": "EasyInv", "eta": "0.5"},
        {"class": "EDICT", "p": [0.5]},
        {"class": "NullText", "method": {"class": "DDIM", "steps": 3}},
        {"class": "GNRI", "iterations": False},
    ):
        with pytest.raises(ValueError, match=r"must be|do not fit"):
            from_dict(values)
    assert from_dict({"class": "ReNoise", "early_window": [0, 4]}) == ReNoise(early_window=(0, 4))


JUNK = [
    None,
    True,
    0,
    -1,
    2**63,
    10**400,
    0.5,
    float("nan"),
    float("inf"),
    "",
    "x",
    "\ud800",
    [],
    [1],
    {},
    {"class": "DDIM"},
]


def corrupted(rng, metadata, tensors, values):
    """One of: JSON with parts replaced, removed or moved; a bit of a tensor; a tensor's dtype or shape; raw bytes."""
    kind = rng.randrange(4)
    text, tensors = json.dumps(values), dict(tensors)
    if kind == 0:
        for _ in range(rng.choice((1, 1, 2, 5))):
            at = rng.choice([*places(values)])
            values = put(values, at, rng.choice([*JUNK, KeyError] if at else JUNK))
        text = json.dumps(values)
    elif kind == 1:
        i = rng.randrange(len(text))
        text = (
            text[:i] + rng.choice(["", chr(rng.randrange(32, 127)), text[rng.randrange(len(text)) :]]) + text[i + 1 :]
        )
    else:
        name = rng.choice([*tensors])
        value = tensors[name].clone()
        if kind == 2 and value.numel():
            value.view(-1).view(torch.uint8)[rng.randrange(value.nbytes)] ^= 1 << rng.randrange(8)
        else:
            value = rng.choice(
                [value.float(), value.half(), value[:1], value[..., :1], value.flatten(), value[None], -value]
            )
        tensors[name] = value.contiguous()
    content = bytearray(save(tensors, {**metadata, "json": text, "sha256": digest(tensors, text)}))
    if rng.random() < 0.2:
        content = content[: rng.randrange(len(content))]
    return bytes(content)


@pytest.mark.parametrize("count", [500, pytest.param(2000, marks=pytest.mark.slow)])
def test_corrupted_files(count, good, tmp_path):
    """An inversion that can be saved again, or the one error."""
    rng, path, loaded, told = random.Random(18), tmp_path / "x", 0, set()
    for _ in range(count):
        path.write_bytes(corrupted(rng, *good))
        try:
            found = Inversion.load(path)
        except ValueError as error:
            assert str(error).startswith(f"inversion file {str(path)!r} cannot be used: ")  # noqa: PT017
            told.add(str(error).partition(": ")[2][:20])
            continue
        loaded += 1
        assert found == found[:]
        if loaded % 20 == 0:
            found.save(path)
            assert Inversion.load(path) == found
    assert count / 20 < loaded < count / 2  # a bit of a latent is still a latent
    assert len(told) > 20
