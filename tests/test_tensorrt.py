"""TensorRT: engines are built for GPUs that are not here, kept, and come back; what needs a GPU says so.

Nothing here runs an engine; test_engine.py has how torch's tensors are bound, and that every call exists.
"""

from functools import partial

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLControlNetPipeline, UNet2DConditionModel
from exact import as_exact_as_eager
from families import deepfloyd, dit
from test_runtimes import TIMES, evaluated, ready
from tiny import seeded, spec, stable_diffusion, stable_diffusion_xl
from tiny_steering import WIDTH, with_controlnets, with_image_prompts
from together import Meeting, together

from invfast import adapters, invert, prepare, runtimes
from invfast.fingerprint import fingerprint
from invfast.runtimes import RUNTIMES, ahead_of_time, engine_build, onnx, tensorrt
from invfast.runtimes.cache import Cache
from invfast.runtimes.engine import Engine

NETWORKS = {
    "SD": (stable_diffusion, {"encoder_hidden_states": (12, 32)}),
    "SDXL": (stable_diffusion_xl, {"encoder_hidden_states": (12, 64), "text_embeds": (16,), "time_ids": (6,)}),
    "DiT": (lambda: seeded(dit), {"x": (4, 8, 8)}),
    "IF": (lambda: seeded(deepfloyd), {"x": (3, 16, 16), "encoder_hidden_states": (12, 32)}),
    "IP-Adapter": (with_image_prompts, {"encoder_hidden_states": (12, 32), "image_embeds_0": (1, WIDTH)}),
    "ControlNet, SDXL": (
        lambda: with_controlnets(StableDiffusionXLControlNetPipeline, stable_diffusion_xl),
        {
            **{"encoder_hidden_states": (12, 64), "text_embeds": (16,), "time_ids": (6,)},
            **{"control_image_0": (3, 128, 64), "control_scales": (1,)},
        },
    ),
}
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
CAPABILITIES = [86, 89, 120]
pytest.importorskip("tensorrt_rtx")


class Toy(torch.nn.Module):
    """Small, and with what a UNet has: convolution, normalisation, time, attention to tokens."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inward, self.norm = torch.nn.Conv2d(4, 8, 3, padding=1), torch.nn.GroupNorm(2, 8)
        self.key, self.outward = torch.nn.Linear(6, 8), torch.nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x, t, tokens, return_dict=False):
        hidden = torch.nn.functional.silu(self.norm(self.inward(x))) + torch.sin(t.to(x.dtype) / 100)
        rows, keys = hidden.flatten(2).transpose(1, 2)[:, None], self.key(tokens)[:, None]
        seen = torch.nn.functional.scaled_dot_product_attention(rows, keys, keys)
        return (self.outward(hidden + seen[:, 0].transpose(1, 2).reshape(hidden.shape)),)


class Encoder(torch.nn.Module):
    def __init__(self, vae):
        super().__init__()
        self.vae = vae

    def forward(self, x, return_dict=False):
        return (self.vae.encode(x).latent_dist.mode(),)


class Decoder(Encoder):
    def forward(self, x, return_dict=False):
        return self.vae.decode(x, return_dict=False)


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    (tmp_path / "cache").mkdir(mode=0o700)
    monkeypatch.setenv("INVFAST_CACHE", str(tmp_path / "cache"))


def build(module, inputs, dtype, capabilities, monkeypatch):
    """Engines of a module: one file, one engine a GPU, each found again without a build; their entries."""
    for capability in capabilities:
        runtime = ahead_of_time("tensorrt_rtx", capability)
        assert runtime.unavailable() is None
        assert runtime.refuses(CPU, dtype) is None
        network = runtime.prepare(module, inputs, spec(module, inputs, dtype))
        with pytest.raises(RuntimeError, match=f"ahead of time, tensorrt_rtx for SM{capability}; it runs on"):
            network(inputs["x"], torch.tensor(0))
    with monkeypatch.context() as patch:
        patch.setattr(engine_build, "in_child", None)
        for capability in capabilities:
            ahead_of_time("tensorrt_rtx", capability).prepare(module, inputs, spec(module, inputs, dtype))
    entries = list(Cache().entries())
    assert sum(entry.inputs["runtime"].startswith("onnx") for entry in entries) == 1
    engines = [entry for entry in entries if entry.inputs["runtime"].startswith("tensorrt_rtx")]
    assert sorted(entry.inputs["capability"] for entry in engines) == capabilities
    return engines


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_engines_are_built_and_come_back(own_cache, monkeypatch):
    module = Toy().eval()
    inputs = {"x": torch.zeros(3, 4, 8, 8), "t": torch.tensor(0), "tokens": torch.zeros(3, 5, 6)}
    engines = build(module, inputs, torch.bfloat16, CAPABILITIES, monkeypatch)
    assert all(entry.inputs["profile"]["x"] == [[1, 4, 8, 8], [4, 4, 8, 8], [4, 4, 8, 8]] for entry in engines)
    path = Cache().folder / engines[0].key / tensorrt.FILE
    with pytest.raises(RuntimeError, match=r"tensorrt_rtx .* cannot load the engine .*driver") as caught:
        Engine("tensorrt_rtx", path, CPU)
    assert str(path) in str(caught.value)
    wrong = {"x": ([4, 4, 8, 8], [1, 4, 8, 8], [1, 4, 8, 8])}
    file = onnx.exported(module, inputs, spec(module, inputs, torch.bfloat16))
    with pytest.raises(RuntimeError, match="tensorrt_rtx could not build an engine for SM86: "):
        engine_build.in_child("tensorrt_rtx", file, path.with_name("wrong"), wrong, 86)
    for dtype, others in ((torch.bfloat16, [86, 75]), (torch.float16, [86])):  # what "auto" asks
        for other in others:
            monkeypatch.setattr(tensorrt, "capability_of", lambda device, other=other: other)
            found = RUNTIMES["tensorrt_rtx"].cached(lambda: fingerprint(module).exact, GPU, dtype)
            assert found == (other == 86 and dtype == torch.bfloat16)
    monkeypatch.setattr(tensorrt, "capability_of", lambda device: 86)
    assert not RUNTIMES["tensorrt_rtx"].cached(lambda: "another network", GPU, torch.bfloat16)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_engines_of_the_bundled_model(own_cache, monkeypatch, pipe):
    for capability in CAPABILITIES:
        options = {"runtime": "tensorrt_rtx", "dtype": "float16", "capability": capability}
        found = prepare(pipe, height=64, width=64, batch_size=2, **options)
        assert (found.runtime, found.dtype) == (f"tensorrt_rtx for SM{capability}", torch.float16)
    engines = [entry for entry in Cache().entries() if "capability" in entry.inputs]
    assert sorted(entry.inputs["capability"] for entry in engines) == CAPABILITIES
    assert len(list(Cache().entries())) == 4  # and one ONNX file


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("part", "shape"), [(Encoder, (1, 3, 64, 64)), (Decoder, (1, 4, 16, 16))])
def test_engines_of_the_bundled_vae(part, shape, own_cache, monkeypatch, pipe):
    build(part(pipe.vae).eval(), {"x": torch.zeros(shape)}, torch.float16, CAPABILITIES, monkeypatch)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_engines_of_the_sd15_architecture(own_cache, monkeypatch):
    torch.manual_seed(0)
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8).eval().half()
    inputs = {"x": torch.zeros(2, 4, 64, 64), "t": torch.tensor(0), "encoder_hidden_states": torch.zeros(2, 77, 768)}
    engines = build(unet, inputs, torch.float16, CAPABILITIES, monkeypatch)
    assert all(entry.size > 2 * sum(p.numel() for p in unet.parameters()) for entry in engines)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_file_in_float16_is_eager_to_rounding(name, own_cache):
    """What TensorRT builds its engines of, for each kind of network, run by ONNX Runtime."""
    onnxruntime = pytest.importorskip("onnxruntime")
    make, shapes = NETWORKS[name]
    module, g = flat(make()), torch.Generator().manual_seed(0)
    inputs = {"x": torch.randn(2, *shapes.get("x", (4, 16, 8)), generator=g), "t": torch.tensor(501)}
    inputs |= {name: torch.randn(2, *shape, generator=g) for name, shape in shapes.items() if name != "x"}
    if name == "DiT":
        inputs["class_labels"] = torch.tensor([3, 1000])
    path = onnx.exported(module, inputs, spec(module, inputs, torch.float16))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    half = {name: (value.half() if value.is_floating_point() else value).numpy() for name, value in inputs.items()}
    eager, exact = (
        evaluated(ready("eager", module, inputs, dtype), inputs, dtype) for dtype in (torch.float16, torch.float64)
    )
    found = [torch.from_numpy(session.run(None, {**half, "t": np.array(t)})[0]) for t in TIMES]
    as_exact_as_eager(found, eager, exact)


def flat(pipe):
    """The network as runtimes are given it."""
    model = adapters.resolve(pipe)(pipe, "eager")
    return model.denoiser.form.flat(model.read["network"].module.eval())


def test_engines_are_shared_and_kernels_are_kept(own_cache, monkeypatch):
    """The life of an engine on its GPU; package, file and GPU are stand-ins."""
    loaded, built, meeting = [], [], Meeting(2)

    class OnGPU:
        accepts = b"made under driver 1"

        def __init__(self, package, path, device, kernels):
            loaded.append(kernels)
            with meeting:
                pass
            self.kernels_taken = kernels == self.accepts
            assert path.read_bytes() == b"engine"

        def __call__(self, inputs):
            return inputs["x"]

        def kernels(self):
            return self.accepts

    def write(package, file, path, shape, capability):
        built.append((package, shape["x"][2][0], capability))
        path.write_bytes(b"engine")

    monkeypatch.setattr(tensorrt, "Engine", OnGPU)
    monkeypatch.setattr(engine_build, "in_child", write)
    monkeypatch.setattr(onnx, "exported", lambda *args: None)
    monkeypatch.setattr(tensorrt, "capability_of", lambda device: 86)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    module = Toy()

    def prepared(batch):
        inputs = {"x": torch.zeros(batch, 4, 8, 8), "t": torch.tensor(0), "tokens": torch.zeros(batch, 5, 6)}
        return RUNTIMES["tensorrt_rtx"].prepare(module, inputs, spec(module, inputs, torch.float16, GPU))

    three, four = together(partial(prepared, 3), partial(prepared, 4))
    assert built == [("tensorrt_rtx", 4, 86)]
    assert loaded == [None]  # one engine for both, though they came at once
    del three, four
    kept = prepared(4)
    assert loaded == [None, OnGPU.accepts]
    del kept
    OnGPU.accepts = b"made under driver 2"
    for _ in range(2):
        prepared(4)
    assert loaded[2:] == [b"made under driver 1", b"made under driver 2"]
    prepared(1)
    assert built[1:] == [("tensorrt_rtx", 1, 86)]
    for entry in Cache().entries():
        if "kernels" not in entry.inputs:
            Cache().remove(entry.key)
    assert not RUNTIMES["tensorrt_rtx"].cached(lambda: fingerprint(module).exact, GPU, torch.float16)


@pytest.mark.parametrize(("batch", "rows"), [(1, 1), (2, 2), (3, 4), (5, 8), (16, 16), (40, 16)])
def test_profiles_are_powers_of_two(batch, rows):
    inputs = {"x": torch.zeros(batch, 4, 8, 8), "t": torch.tensor(0), "tokens": torch.zeros(batch, 77, 6)}
    best = {name: best for name, (_, best, _) in tensorrt.profile(inputs).items()}
    assert best == {"x": [rows, 4, 8, 8], "tokens": [rows, 77, 6]}


def test_no_gpu_and_no_package(tiny, peach, monkeypatch):
    with pytest.raises(RuntimeError, match="'tensorrt_rtx' is unavailable: torch finds no NVIDIA GPU and driver here"):
        invert(tiny, peach, runtime="tensorrt_rtx")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name, extra in (("tensorrt", "tensorrt"), ("tensorrt_rtx", "tensorrt-rtx")):
        with pytest.raises(RuntimeError, match=rf"No module named '{name}' \(pip install \"invfast\[{extra}\]\"\)"):
            invert(tiny, peach, runtime=name)


def test_a_package_whose_libraries_are_missing(tiny, peach, monkeypatch):
    def fails(name):
        raise ImportError("libnvinfer.so.11: cannot open shared object file")

    monkeypatch.setattr(tensorrt, "_library", fails)
    with pytest.raises(RuntimeError, match=r"tensorrt_rtx does not load: libnvinfer.so.11: .*\(pip install"):
        invert(tiny, peach, runtime="tensorrt_rtx")


def test_what_it_refuses(monkeypatch, tiny):
    refuses = RUNTIMES["tensorrt_rtx"].refuses
    assert "the pipeline is on cpu; move it to an NVIDIA GPU" in refuses(CPU, torch.float16)
    monkeypatch.setattr(tensorrt, "capability_of", lambda device: 90)
    assert "for SM75, SM80, SM86, SM89, SM120, SM121, not for SM90" in refuses(GPU, torch.float16)
    assert RUNTIMES["tensorrt"].refuses(GPU, torch.float16) is None
    assert "not in torch.float64" in RUNTIMES["tensorrt"].refuses(GPU, torch.float64)
    assert "SM75 has no bfloat16" in ahead_of_time("tensorrt_rtx", 75).refuses(CPU, torch.bfloat16)
    assert "builds for the GPU it finds, not for SM86" in ahead_of_time("tensorrt", 86).refuses(CPU, torch.float16)
    with pytest.raises(ValueError, match="'openvino' does not build for another machine's GPU; expected"):
        prepare(tiny, height=64, width=64, runtime="openvino", capability=86)
    with pytest.raises(ValueError, match="unknown runtime 'auto_rtx'"):
        prepare(tiny, height=64, width=64, runtime="auto_rtx", capability=86)


def test_auto_takes_an_engine_that_is_there(monkeypatch):
    identity = lambda: "network"  # noqa: E731
    options = {"free": True, "parameters": 10**9, "opaque": None, "identity": identity}
    choose = lambda **more: runtimes.resolve("auto", GPU, torch.float16, **{**options, **more})  # noqa: E731
    monkeypatch.setattr(RUNTIMES["compile"], "unavailable", lambda: None)
    assert choose().faster.name == "compile"  # no GPU, so no engine
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setattr(RUNTIMES[name], "unavailable", lambda: None)
        monkeypatch.setattr(RUNTIMES[name], "refuses", lambda device, dtype: None)
        monkeypatch.setattr(RUNTIMES[name], "cached", lambda *args: False)
    assert choose().faster.name == "compile"
    monkeypatch.setattr(RUNTIMES["tensorrt_rtx"], "cached", lambda *args: args == (identity, GPU, torch.float16))
    found = choose()
    assert (found.runtime.name, found.dtype) == ("tensorrt_rtx", torch.float16)
    assert "the cache has an engine of this network for cuda:0 in torch.float16" in found.reason
    assert choose(opaque="hooks").runtime.name == "eager"
    assert choose(identity=None).faster.name == "compile"
