"""Weights come from safetensors alone: nothing is unpickled, wherever in a model it lies."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from tiny import stable_diffusion

from invfast import demo
from invfast.cli.base import load_model

FILES = {
    "unet": ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"),
    "vae": ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"),
    "text_encoder": ("model.safetensors", "pytorch_model.bin"),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "tiny"
    stable_diffusion().save_pretrained(folder)
    return folder


@pytest.fixture
def unpickled(monkeypatch):
    """What was read by torch.load."""
    read, load = [], torch.load
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: read.append(args) or load(*args, **kwargs))
    return read


@pytest.mark.parametrize("part", FILES)
def test_pickled_weights_are_not_read(part, model, tmp_path, unpickled):
    folder = shutil.copytree(model, tmp_path / "m")
    safe, pickled = (folder / part / name for name in FILES[part])
    torch.save(load_file(safe), pickled)
    load_model(str(folder), "cpu")  # beside safetensors they lie unread
    safe.unlink()
    with pytest.raises(OSError, match=r"(?s)safetensors only, never unpickled .*save_pretrained"):
        load_model(str(folder), "cpu")
    assert not unpickled


@pytest.mark.parametrize("part", FILES)
def test_pickled_shards_are_not_read(part, model, tmp_path, unpickled):
    """An index of safetensors that names something else."""
    folder = shutil.copytree(model, tmp_path / "m")
    safe = folder / part / FILES[part][0]
    weights = load_file(safe)
    safe.unlink()
    torch.save(weights, folder / part / "shard-00001-of-00001.bin")
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, "shard-00001-of-00001.bin")}
    safe.with_name(f"{safe.name}.index.json").write_text(json.dumps(index))
    with pytest.raises(OSError, match=r"(?s)names 'shard-00001-of-00001\.bin' among its safetensors.*never unpickled"):
        load_model(str(folder), "cpu")
    assert not unpickled


@pytest.mark.parametrize("folder", ["emoji64", "emoji64-early"])
def test_the_bundled_models_read_no_pickles(folder, tmp_path, monkeypatch, unpickled):
    for name in ("emoji64", "emoji64-early"):
        shutil.copytree(demo.ROOT / name, tmp_path / name)
    monkeypatch.setattr(demo, "ROOT", tmp_path)
    safe = tmp_path / folder / "unet" / FILES["unet"][0]
    torch.save(load_file(safe), safe.with_name(FILES["unet"][1]))
    safe.unlink()
    with pytest.raises(OSError, match="safetensors"):
        demo.load_pipeline(early=folder.endswith("early"))
    assert not unpickled
