"""What lies in examples/ runs as it stands: scripts, notebooks, and the two files for diffusers' own loaders."""

import ast
import re
import runpy
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from diffusers.modular_pipelines import ModularPipelineBlocks
from nbclient import NotebookClient

from invfast import Inversion, demo, invert, reconstruct

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
MODEL = demo.ROOT / "emoji64"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
MAGIC = re.compile("^%.*", re.MULTILINE)
QUICK = {"method": "ddim", "num_inference_steps": 3}

# Notebooks


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_whole_and_without_outputs(path):
    notebook = nbformat.read(path, nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    assert notebook.nbformat == 4
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(cells) > 4
    for cell in cells:
        assert cell.outputs == []
        assert cell.execution_count is None
        compile(MAGIC.sub("", cell.source), path.name, "exec")
    for target in re.findall(r"\]\(([^)#:]+)\)", "".join(cell.source for cell in notebook.cells)):
        assert (path.parent / target).is_file(), target


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_names_what_there_is(path):
    cells = nbformat.read(path, nbformat.NO_CONVERT).cells
    nodes = list(ast.walk(ast.parse(MAGIC.sub("", "\n".join(c.source for c in cells if c.cell_type == "code")))))
    names = {}
    for node in nodes:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            exec(ast.unparse(node), names)
    asked = {(n.value.id, n.attr) for n in nodes if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name)}
    missing = [".".join(each) for each in asked if each[0] in names and not hasattr(names[each[0]], each[1])]
    assert missing == []


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "MPLCONFIGDIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    (tmp_path / "work").mkdir()
    notebook = nbformat.read(path, 4)
    NotebookClient(notebook, kernel_name="python3", resources={"metadata": {"path": str(tmp_path / "work")}}).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in shown) >= 4
    assert not [output for output in shown if len(output.get("data", {}).get("text/plain", "")) > 200]
    assert not list((tmp_path / "work").iterdir())


def test_there_are_notebooks():
    assert [path.stem for path in NOTEBOOKS] == ["first_picture", "watermarks_and_analysis"]


# Scripts


@pytest.fixture
def script(tmp_path, monkeypatch, capsys):
    """Runs a script of examples/ in an empty folder: what it prints."""
    monkeypatch.chdir(tmp_path)

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_every_script_is_run_here():
    tested = set(re.findall(r'script\(\s*"(\w+\.py)"', Path(__file__).read_text()))
    assert tested == {path.name for path in EXAMPLES.glob("*.py")}


def test_inverting_a_folder_goes_on_where_it_ended(script, tmp_path, samples):
    (tmp_path / "photos").mkdir()
    samples["owl"].image.save(tmp_path / "photos" / "owl.png")
    (tmp_path / "photos" / "a.png").write_bytes(b"no image")
    asked = ("photos", "noise", "--model", MODEL, "--method", "ddim", "--steps", 3)
    said = script("invert_folder.py", *asked)
    assert "1 inverted now, 0 before, 1 failed" in said
    assert "a.png: " in said
    assert "owl.png: Inversion(1 image" in said
    assert (tmp_path / "noise" / "again.png").is_file()
    assert "0 inverted now, 1 before, 1 failed" in script("invert_folder.py", *asked)


def test_a_pipeline_on_whatever_there_is(script, tmp_path):
    said = script("on_a_gpu.py", "--steps", 2, "--method", "ddim")
    assert re.findall(r"(\w+): [\d.]+ s, \w+: .", said) == ["first", "second"]
    assert (tmp_path / "again.png").is_file()
    assert "first: " in script(
        "on_a_gpu.py", MODEL, tmp_path / "again.png", "noto peach", "--steps", 1, "--method", "ddim"
    )


def test_watermarks_are_found_in_a_folder(script, monkeypatch):
    monkeypatch.setattr("secrets.token_hex", lambda count: "a1" * count)  # else p is another one every time
    monkeypatch.setattr("secrets.randbits", lambda count: 0xA1)
    torch.manual_seed(0)
    found = dict(re.findall(r"([\w-]+)\.png p = (\S+)", script("find_watermarks.py", "--steps", 10)))
    assert sorted(found) == ["marked-1", "marked-2", "plain-1", "plain-2"]
    assert all((float(p) < 1e-3) == name.startswith("marked") for name, p in found.items()), found


def test_a_method_of_ones_own_beats_ddim(script):
    ddim, own = (float(each) for each in re.findall(r": ([\d.]+)% off", script("own_method.py")))
    assert own < ddim / 2


# diffusers


@pytest.fixture(scope="module")
def community(own_modules):
    file = str(EXAMPLES / "diffusers" / "invfast_pipeline.py")
    pipe = DiffusionPipeline.from_pretrained(MODEL, custom_pipeline=file, trust_remote_code=True, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_a_community_pipeline_inverts(community, pipe, samples):
    found = community.invert(*samples["peach"], **QUICK)
    assert isinstance(found, Inversion)
    assert found.latents.equal(invert(pipe, *samples["peach"], **QUICK).latents)
    assert reconstruct(community, found).latents.equal(reconstruct(pipe, found).latents)


def test_a_community_pipeline_is_else_as_diffusers_has_it(community, pipe):
    assert isinstance(community, StableDiffusionPipeline)
    assert community.components.keys() == pipe.components.keys()
    images = [
        each("noto peach", num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="np").images
        for each in (community, pipe)
    ]
    assert np.array_equal(*images)


def test_a_community_pipeline_names_what_is_wrong(community):
    with pytest.raises(ValueError, match="unknown method 'nothing'"):
        community.invert(demo.load_images()["peach"].image, method="nothing")
    with pytest.raises(TypeError, match="image"):
        community.invert(None)


@pytest.fixture(scope="module")
def modular(own_modules):
    blocks = ModularPipelineBlocks.from_pretrained(str(EXAMPLES / "diffusers"), trust_remote_code=True)
    pipe = blocks.init_pipeline(str(MODEL))
    pipe.load_components(dtype=torch.float32)  # else the text encoder is in float16, as its file
    return pipe


def test_a_modular_block_inverts(modular, pipe, samples):
    image, prompt = samples["peach"]
    before = dict(modular.scheduler.config), {name: id(part) for name, part in modular.components.items()}
    state = modular(image=image, prompt=prompt, **QUICK)
    assert state.latents.equal(invert(pipe, image, prompt, **QUICK).latents)
    assert state.latents.equal(state.inversion.latents)
    assert before == (
        dict(modular.scheduler.config),
        {name: id(part) for name, part in modular.components.items()},
    )


def test_a_modular_block_takes_lists_and_the_rest_of_inverts_arguments(modular, samples):
    images = [samples[name].image for name in ("peach", "owl")]
    given = {"save_trajectory": True, "strength": 0.7}
    inversion = modular(image=images, prompt=["a", "b"], invert_kwargs=given, output="inversion", **QUICK)
    assert len(inversion) == 2
    assert inversion.trajectory is not None
    assert inversion.schedule.num_steps == 2


def test_a_modular_block_says_what_is_missing(modular, own_modules, samples):
    with pytest.raises(ValueError, match="Required input 'image' is missing"):
        modular(prompt="noto peach")
    bare = type(modular.blocks)().init_pipeline(str(MODEL))
    with pytest.raises(ValueError, match=r"needs vae, text_encoder, tokenizer, unet, scheduler: call load_components"):
        bare(image=samples["peach"].image)


def test_code_is_not_run_unless_it_is_trusted(own_modules):
    with pytest.raises(ValueError, match="trust_remote_code"):
        ModularPipelineBlocks.from_pretrained(str(EXAMPLES / "diffusers"))
