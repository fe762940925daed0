"""PIE-Bench's harness: its layout, its figures, that it goes on after a kill, and what it says is missing."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from benchmarks.pie import figures, layout, learned, run, small
from benchmarks.pie.__main__ import main, native
from benchmarks.pie.table import table
from invfast import demo, editing

CPU = torch.device("cpu")
GRID = run.Grid(("ddim", "easyinv"), ("prompt", "masactrl"), 2, 3.0, 64)


def noisy(seed=0, side=32):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pie")
    small.write(folder)
    return folder


def broken(data, folder, entries):
    """The small set under another mapping."""
    (folder / layout.IMAGES).symlink_to(data / layout.IMAGES)
    (folder / layout.MAPPING).write_text(json.dumps(entries))
    return folder


# The layout


def test_a_mask_by_hand():
    found = layout.decode([7, 3, 14, 1, 22, 1], 5, 6)
    wanted = [
        [1, 1, 1, 1, 1, 1],
        [1, 1, 1, 1, 0, 1],
        [1, 0, 1, 0, 0, 1],
        [1, 0, 0, 0, 1, 1],
        [1, 1, 1, 1, 1, 1],
    ]
    assert found.astype(int).tolist() == wanted


def test_a_run_is_cut_at_the_end_and_goes_on_over_lines():
    assert layout.decode([10, 99], 4, 5)[1:3].tolist() == [[True, False, False, False, True], [True] * 5]


def test_runs_of_a_mask():
    mask = np.zeros((4, 5), bool)
    mask[1, 3:] = mask[2, :2] = mask[3, 4] = True
    assert layout.encode(mask) == [8, 4, 19, 1]
    assert layout.encode(np.ones((2, 3), bool)) == [0, 6]
    assert layout.encode(np.zeros((2, 3), bool)) == []


@pytest.mark.parametrize("runs", [[1], [1, -2], [1.5, 2], "12", None, [True, 1], {"counts": []}])
def test_no_mask(runs):
    with pytest.raises(ValueError, match="in pairs"):
        layout.decode(runs, 8, 8)


def test_a_mask_of_another_size():
    with pytest.raises(ValueError, match=r"from pixel 64, .* 8 x 8"):
        layout.decode([3, 2, 64, 1], 8, 8)


def test_brackets_are_no_part_of_a_prompt():
    assert layout.plain("a slanted [rusty] mountain [bicycle]") == "a slanted rusty mountain bicycle"


def test_an_image_and_its_mask_are_resized_alike(data):
    entries = layout.entries(data, 3)
    assert len(entries) == 3
    own, half = (layout.read(data, "0", entries["000000000000"], side) for side in (64, 32))
    assert (own.source, own.target) == ("noto peach", "noto cat face")
    assert own.picture.tobytes() == demo.load_images()["peach"].image.tobytes()
    assert half.picture.size == (32, 32)
    assert half.mask.shape == (32, 32)
    assert abs(half.mask.mean() - own.mask.mean()) < 0.05
    assert 0.3 < own.mask.mean() < 0.9


@pytest.mark.parametrize("text", [None, "{", "[]", "{}"])
def test_no_mapping_file(tmp_path, text):
    if text is not None:
        (tmp_path / layout.MAPPING).write_text(text)
    with pytest.raises(ValueError, match=layout.MAPPING):
        layout.entries(tmp_path)


def test_the_small_set_has_masks_and_pairs(data):
    samples = demo.load_images()
    for (name, sample), entry in zip(samples.items(), layout.entries(data).values(), strict=True):
        example = layout.read(data, name, entry, 64)
        assert example.source == sample.prompt != example.target
        assert example.source.split()[0] == example.target.split()[0]
        assert example.mask.all() == sample.prompt.startswith("photo")


# Figures


def test_figures_of_both_parts():
    x, y = noisy(0), noisy(1)
    mask = np.zeros((32, 32), bool)
    mask[:, :12] = True
    found = figures.pixels(x, y, mask)
    a, b = (np.asarray(each, float) / 255 for each in (x, y))
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "channel_axis": 2}
    for name, part in (("", ~mask), ("_inside", mask)):
        p, q = a * part[..., None], b * part[..., None]
        assert found[f"mse{name}"] == pytest.approx(((p - q) ** 2).mean())
        assert found[f"psnr{name}"] == pytest.approx(peak_signal_noise_ratio(p, q, data_range=1))
        # torchmetrics' mean is of the whole map, scikit-image's is not; they reflect its border in two ways.
        whole = structural_similarity(p, q, data_range=1, full=True, **options)[1]
        assert found[f"ssim{name}"] == pytest.approx(whole.mean(), abs=0.02)
    assert found["mse_alone"] == pytest.approx(((a - b)[~mask] ** 2).mean())
    assert found["psnr_alone"] == pytest.approx(found["psnr"] - 10 * math.log10(32 / 20))


def test_figures_that_there_are_not():
    x, y, all_of_it = noisy(0), noisy(1), np.ones((32, 32), bool)
    found = figures.pixels(x, y, all_of_it)
    assert [found[name] for name in ("psnr", "mse", "ssim", "mse_alone", "psnr_alone")] == [None] * 5
    assert found["psnr_inside"] > 0
    same = figures.pixels(x, x, ~all_of_it)
    assert (same["mse"], same["psnr"], same["psnr_alone"]) == (0, None, None)
    assert same["ssim"] == pytest.approx(1)
    with pytest.raises(ValueError, match="differ in size"):
        figures.pixels(x, noisy(1, 24), all_of_it)


def test_structure_distance_of_known_keys(tmp_path, monkeypatch):
    from transformers import ViTConfig, ViTModel

    shape = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8}
    model = ViTModel(ViTConfig(image_size=16, patch_size=8, **shape), add_pooling_layer=False).eval()
    model.save_pretrained(tmp_path)
    monkeypatch.setattr(learned, "DINO", str(tmp_path))
    metric, (x, y) = learned.structure(CPU), (noisy(0, 16), noisy(1, 16))
    assert metric(x, x, None, "")["structure_distance"] == 0
    seen = []
    for picture in (x, y):
        mean, std = (np.asarray(each, np.float32) for each in (learned.MEAN, learned.STD))
        pixels = torch.from_numpy((np.asarray(picture, np.float32) - mean) / std).permute(2, 0, 1)[None]
        keys = []
        name = [n for n, _ in model.named_modules() if n.endswith((".k_proj", ".key"))][-1]
        hook = model.get_submodule(name).register_forward_hook(lambda m, i, o, keys=keys: keys.append(o[0]))
        model(pixels)
        hook.remove()
        unit = (keys[0] / keys[0].norm(dim=1, keepdim=True)).detach().double().numpy()
        assert unit.shape == (5, 8)
        seen.append(unit @ unit.T)
    wanted = ((seen[0] - seen[1]) ** 2).mean()
    assert metric(x, y, None, "")["structure_distance"] == pytest.approx(wanted, rel=1e-3)


def test_clip_similarity_of_a_random_network(tmp_path, monkeypatch):
    from transformers import AutoImageProcessor, CLIPConfig, CLIPModel, PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(tiny.TOKENIZER)
    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**small, "vocab_size": len(tokenizer), "max_position_embeddings": 12, "eos_token_id": 2}
    vision = {**small, "image_size": 16, "patch_size": 8}
    torch.manual_seed(1)
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=4)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    sides = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
    settings = {"image_processor_type": "CLIPImageProcessor", **sides}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    assert AutoImageProcessor.from_pretrained(tmp_path).crop_size["height"] == 16
    monkeypatch.setattr(learned, "CLIP", str(tmp_path))
    metric, mask = learned.clip(CPU), np.zeros((16, 16), bool)
    mask[4:, :] = True
    found = metric(noisy(0, 16), noisy(1, 16), mask, "noto peach")
    assert 0 <= found["clip"] <= 100
    black = Image.fromarray(np.asarray(noisy(1, 16)) * mask[..., None].astype(np.uint8))
    assert found["clip_inside"] == metric(noisy(0, 16), black, mask, "noto peach")["clip"]
    assert metric(noisy(0, 16), noisy(1, 16), ~mask & mask, "noto peach")["clip_inside"] is None


# Runs


class Killed(BaseException):
    """What no handler of errors catches."""


@pytest.fixture
def bench(data, monkeypatch):
    """Edits and inversions that are fast, and counted."""
    counted = {"invert": 0, "edit": 0, "limit": 10**9}

    def invert(pipe, image, prompt, *, method, **options):
        counted["invert"] += 1
        return SimpleNamespace(image=image, method=method)

    def edit(pipe, there, prompt, *, method, **options):
        if counted["edit"] == counted["limit"]:
            raise Killed
        counted["edit"] += 1
        if prompt == "noto tulip":
            raise FloatingPointError("latents became non-finite")
        shift = len(prompt) + len(there.method) + 10 * isinstance(method, editing.MasaCtrl)
        return SimpleNamespace(images=[Image.fromarray((np.asarray(there.image) + shift).astype(np.uint8))])

    def pixels(source, edited, mask):
        return {"mse": float(np.mean((np.asarray(source, float) - np.asarray(edited, float)) ** 2))}

    monkeypatch.setattr(run, "invert", invert)
    monkeypatch.setattr(run, "edit", edit)
    monkeypatch.setattr(figures, "pixels", pixels)
    pipe = SimpleNamespace(components={}, scheduler=SimpleNamespace(config={}))
    found = run.Bench(pipe, data, layout.entries(data, 6), {})
    return SimpleNamespace(own=found, counted=counted)


def shown(bench, path, **options):
    return table(run.run(bench.own, GRID, path, **options), {})


def test_an_image_is_inverted_once_for_all_editors_and_rows_are_kept(bench, tmp_path):
    first = shown(bench, tmp_path / "new" / "rows.jsonl")
    assert (bench.counted["invert"], bench.counted["edit"]) == (12, 24)
    assert "latents became non-finite" in first
    assert shown(bench, tmp_path / "new" / "rows.jsonl") == first
    assert bench.counted["edit"] == 24
    other = run.Grid(GRID.inversions, GRID.editors, 3, 3.0, 64)
    run.run(bench.own, other, tmp_path / "new" / "rows.jsonl")
    assert bench.counted["edit"] == 48  # other settings are other rows, and those before stay
    assert shown(bench, tmp_path / "new" / "rows.jsonl") == first
    assert bench.counted["edit"] == 48


@pytest.mark.parametrize("limit", [0, 7, 23])
def test_a_killed_run_goes_on(bench, tmp_path, limit):
    whole = shown(bench, tmp_path / "whole.jsonl")
    path = tmp_path / "cut.jsonl"
    bench.counted |= {"edit": 0, "limit": limit}
    with pytest.raises(Killed):
        run.run(bench.own, GRID, path)
    assert path.read_text().count('"image"') == limit
    with path.open("a") as file:
        file.write('{"run":1,"key":"0123","image":"0000')
    bench.counted["limit"] = 10**9
    assert shown(bench, path) == whole
    assert bench.counted["edit"] == 24
    assert all(json.loads(line) for line in path.read_text().splitlines())


@pytest.mark.parametrize("left", [1, 40])
def test_a_torn_line_is_made_again(bench, tmp_path, left):
    path = tmp_path / "rows.jsonl"
    whole = shown(bench, path)
    path.write_bytes(path.read_bytes()[:-left])
    assert shown(bench, path) == whole
    assert bench.counted["edit"] == (24 if left == 1 else 25)  # one that lost nothing but its newline is whole


def test_damage_elsewhere_and_foreign_rows_are_named(bench, tmp_path):
    path = tmp_path / "rows.jsonl"
    shown(bench, path)
    path.write_text(path.read_text().replace('{"run":1,"key"', '{"run":1"key"', 1))
    with pytest.raises(ValueError, match="line 2"):
        shown(bench, path)
    path.write_text('{"other": 1}\n')
    with pytest.raises(ValueError, match="--output another"):
        shown(bench, path)


def test_errors_are_rows_and_can_be_tried_again(bench, data, tmp_path):
    given = layout.entries(data, 5)
    names = list(given)
    given[names[0]] = {**given[names[0]], "image_path": "gone.png"}
    given[names[1]] = "no entry"
    given[names[2]] = {key: value for key, value in given[names[2]].items() if key != "mask"}
    given[names[3]] = {**given[names[3]], "mask": [5]}
    own = run.Bench(bench.own.pipe, broken(data, tmp_path, given), given, {})
    path = tmp_path / "rows.jsonl"
    found = run.run(own, GRID, path)
    assert [row["error"].split(":")[0] for row in found[:16:4]] == ["FileNotFoundError"] + ["ValueError"] * 3
    assert "has no 'mask'" in found[8]["error"]
    text = table(found, {})
    assert "| prompt | ddim | 1 | 4 |" in text
    assert "16 rows failed" in text
    assert "gone.png" in text
    before = bench.counted["edit"]
    run.run(own, GRID, path)
    assert bench.counted["edit"] == before
    rows = path.read_text().count("\n")
    assert table(run.run(own, GRID, path, retry=True), {}) == text
    assert path.read_text().count("\n") == rows + 1  # made again, under the number of a new run


def test_an_image_that_came_is_measured(bench, data, tmp_path):
    given = {"a": {**next(iter(layout.entries(data).values())), "image_path": "../late.png"}}
    own = run.Bench(bench.own.pipe, tmp_path, given, {})
    (tmp_path / layout.IMAGES).mkdir()
    assert "error" in run.run(own, GRID, tmp_path / "rows.jsonl")[0]
    noisy(0, 64).save(tmp_path / "late.png")
    assert "figures" in run.run(own, GRID, tmp_path / "rows.jsonl")[0]


def test_what_is_not_installed_ends_the_run(bench, tmp_path, monkeypatch):
    def missing(*args, **options):
        raise ImportError("no such runtime")

    monkeypatch.setattr(run, "invert", missing)
    with pytest.raises(ImportError, match="no such runtime"):
        run.run(bench.own, GRID, tmp_path / "rows.jsonl")


# The whole


def test_missing_metrics_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(learned, "DINO", str(tmp_path / "dino"))
    monkeypatch.setattr(learned, "CLIP", str(tmp_path / "clip"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    found, missing = learned.load(CPU)
    assert not found
    made = [{"editor": "e", "inversion": "i", "figures": figures.pixels(noisy(), noisy(1), np.eye(32) > 0)}]
    text = table(made, missing)
    for name, weights in (("structure distance", "DINO"), ("LPIPS", "SqueezeNet"), ("CLIP similarity", "CLIP")):
        assert f"- {name}: missing: no weights of {weights}" in text
    assert text.splitlines()[2].count("missing") == 5


def test_names_are_checked_before_anything_is_loaded(data, capsys):
    for given, said in (
        (["--inversions", "dim"], "unknown inversion 'dim'"),
        (["--editors", "prompt,portrait"], "second image"),
        (["--editors", "direct+prompt"], "takes nothing from one"),
        (["--steps", "0"], "--steps must be at least 1"),
    ):
        with pytest.raises(SystemExit):
            main(["--data", str(data), *given])
        assert said in capsys.readouterr().err


def test_the_size_of_a_model(pipe, tiny):
    assert (native(pipe), native(tiny)) == (64, 512)
    assert native(SimpleNamespace(default_sample_size=128, vae_scale_factor=8)) == 1024
    with pytest.raises(ValueError, match="--size"):
        native(SimpleNamespace())


def test_end_to_end(tiny, data, tmp_path, capsys):
    tiny.save_pretrained(tmp_path / "model")
    rows = tmp_path / "rows.jsonl"
    given = ["--data", str(data), "--model", str(tmp_path / "model"), "--inversions", "ddim", "--steps", "2"]
    given += ["--editors", "prompt,direct+prompt_to_prompt", "--size", "64", "--limit", "2", "--device", "cpu"]
    main([*given, "--runtime", "eager", "--output", str(rows)])
    first = capsys.readouterr().out
    assert "| prompt | ddim | 2 | 0 |" in first
    assert "| direct+prompt_to_prompt | ddim | 2 | 0 |" in first
    lines = rows.read_bytes().splitlines(keepends=True)
    assert len(lines) == 5
    rows.write_bytes(b"".join(lines[:2]) + lines[2][:50])
    main([*given, "--runtime", "eager", "--output", str(rows)])
    assert capsys.readouterr().out == first
