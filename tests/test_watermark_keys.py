"""Keys as files, read with mistrust, and what no key can be."""

import json
import math
import os
import stat
import sys

import pytest
import torch
from watermarks import KEYS, A, key

from invfast.analysis import gaussian
from invfast.watermark import KINDS, GaussianShading, RingID, TreeRing, load_key, save_key, score

# Files


@pytest.mark.parametrize("kind", KEYS)
def test_a_key_comes_back_from_its_file(kind, tmp_path):
    own, path = key(kind), tmp_path / "key.json"
    save_key(own, path)
    assert load_key(path) == own
    assert (
        load_key(path).embed(1, torch.Generator().manual_seed(1)).equal(own.embed(1, torch.Generator().manual_seed(1)))
    )
    assert A not in repr(own)
    if os.name == "posix":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [each.name for each in tmp_path.iterdir()] == ["key.json"]


def test_new_keys_differ():
    for cls in KINDS.values():
        assert cls.new((4, 16, 16)) != cls.new((4, 16, 16))


def test_a_key_is_the_same_in_every_version():
    """Images are looked for years later."""
    latents = torch.zeros(1, 4, 16, 16) + 0.5
    assert key("gaussian_shading")._stream().flatten()[:16].tolist() == STREAM
    assert key("ring").mark(latents.double())[0, 3, 0, :3].tolist() == pytest.approx(RING, abs=1e-9)


STREAM = [-1, 1, -1, 1, -1, 1, 1, 1, 1, 1, -1, -1, -1, 1, 1, -1]
RING = [-3.8256084149769634, -1.5737543119282833, 1.2475031968683044]


def said(path, **changes):
    """A key's file that says something else, its digest right."""
    from invfast.watermark import keys

    values = json.loads(path.read_text())
    del values["sha256"]
    values = {**values, **changes}
    path.write_text(json.dumps({**values, "sha256": keys._digest(values)}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"secret": "zz"}, "secret must be at least 16 bytes in hexadecimal"),
        ({"secret": "00"}, "secret must be at least 16 bytes in hexadecimal"),
        ({"secret": 3}, "secret must be str, got 3"),
        ({"shape": [4, 16]}, "shape must be 3 integers of at least 1"),
        ({"shape": [4, 0, 16]}, "shape must be 3 integers of at least 1"),
        ({"shape": [4, 16, 1.5]}, "shape must be"),
        ({"radius": 8}, "radius must lie above 0, the inner radius, and below 8"),
        ({"radius": 0}, "radius must be an integer of at least 1"),
        ({"radius": 10**30}, "radius must be int, got an integer of 100 bits"),
        ({"channel": 4}, r"latents \(4, 16, 16\) have channels 0 to 3, got 4"),
        ({"pattern": "disc"}, "pattern must be one of ring, rand, zeros, got 'disc'"),
        ({"more": 1}, "'more' is unknown"),
        ({"channel": None}, "channel must be int, got None"),
    ],
)
def test_files_that_say_what_no_key_can_be(settings, message, tmp_path):
    path = tmp_path / "key.json"
    save_key(key("ring"), path)
    said(path, settings={**json.loads(path.read_text())["settings"], **settings})
    with pytest.raises(ValueError, match=message) as caught:
        load_key(path)
    assert str(caught.value).startswith(f"key file {str(path)!r} cannot be used: ")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "other"}, "unknown kind 'other'; expected one of tree_ring, gaussian_shading, ring_id"),
        ({"kind": ["tree_ring"]}, "unknown kind"),
        ({"schema": 2}, "its schema is 2, this version of invfast reads 1"),
        ({"format": "x"}, "it is no invfast.watermark-key file"),
        ({"settings": [1]}, "settings must be names and values"),
        ({"settings": {}}, "cannot be used"),
    ],
)
def test_files_that_are_no_keys(changes, message, tmp_path):
    path = tmp_path / "key.json"
    save_key(key("ring"), path)
    said(path, **changes)
    with pytest.raises(ValueError, match=message):
        load_key(path)


def test_damaged_files(tmp_path):
    path = tmp_path / "key.json"
    save_key(key("gaussian_shading"), path)
    whole = path.read_bytes()
    for content in (b"", b"{", whole[:-9], whole.replace(b'"07"', b'"08"'), b"[]", b"[" * 100_000, b"\xff\xfe", b"{}"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="cannot be used"):
            load_key(path)
    with pytest.raises(ValueError, match="a folder"):
        load_key(tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_key(tmp_path / "none")
    with pytest.raises(OSError, match="missing"):
        save_key(key("ring"), tmp_path / "missing" / "key.json")
    with pytest.raises(TypeError, match="key must be one of TreeRing"):
        save_key("key", path)


# What cannot be


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TreeRing.new((4, 16, 16), radius=8), "below 8, half the shorter side"),
        (lambda: TreeRing.new((4, 16)), "shape must be 3 integers"),
        (lambda: TreeRing.new("abc"), "shape must be 3 integers"),
        (lambda: TreeRing.new((4, 2, 2)), "radius must lie above 0"),
        (lambda: RingID.new((4, 16, 16), inner=7), "radius must lie above 7"),
        (lambda: RingID.new((4, 16, 16), message="1"), "message must be 6 zeros and ones for this shape, got 1 char"),
        (lambda: RingID.new((4, 16, 16), ring_channels=()), "ring_channels must be at least one"),
        (lambda: RingID.new((4, 16, 16), ring_channels=(0,)), "or of noise_channels twice"),
        (lambda: RingID((4, 16, 16), A, "1", 2, 1, 3, ()), "ring_channels must be a list of channels, got 3"),
        (lambda: GaussianShading.new((4, 16, 16), copies=(1, 3, 1)), "copies must divide the sides"),
        (lambda: GaussianShading.new((4, 16, 16), message="2" * 16), "message must be 16 zeros and ones"),
        (lambda: GaussianShading((1, 1, 1), A, "1", (1, 1, 1), "x"), "nonce must be hexadecimal"),
        (lambda: key("ring").embed(0), "n must be an integer of at least 1, got 0"),
        (lambda: score(gaussian((1, 4, 8, 8)), key("ring")), r"the key is for latents \(4, 16, 16\)"),
        (lambda: score(gaussian((1, 4, 16, 16)) / 0, key("ring")), "latents must be finite"),
        (lambda: score(gaussian((1, 4, 16, 16)), [key("ring"), key("ring", (4, 32, 32))]), "for latents of one shape"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("keys", ["key.json", [], [1], None])
def test_what_is_no_key(keys):
    with pytest.raises(TypeError, match=r"keys must be a watermark\.Key or a list of them"):
        score(gaussian((1, 4, 16, 16)), keys)


def test_latents_of_one_value_are_no_error():
    for kind in KEYS:
        for value in (0.0, 1.0):
            (found,) = score(torch.full((1, 4, 16, 16), value), key(kind))
            assert 0 <= found.p_value <= 1
            assert math.isfinite(found.statistic)
            if kind != "zeros" or value == 0:
                assert found.p_value > 1e-6


def test_without_scipy(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "scipy"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(ImportError, match=r'watermark needs scipy.*pip install "invfast\[watermark\]"'):
        score(gaussian((1, 4, 16, 16)), key("ring"))
    key("ring").embed(1)
