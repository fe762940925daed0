"""ONNX Runtime: eager's numbers from one file for every size and batch, and errors that name their causes."""

from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import onnxruntime
import pytest
import torch
from exact import steps_as_exact_as_eagers
from peft import LoraConfig
from test_runtimes import NETWORKS, evaluations_are_eagers, inversions_are_eagers, inverting
from tiny import spec, stable_diffusion
from toy import distance

from invfast import invert, release, runtimes
from invfast.fingerprint import fingerprint
from invfast.methods import FixedPoint
from invfast.runtimes import RUNTIMES, convert, onnx
from invfast.runtimes.cache import Cache
from invfast.runtimes.onnxruntime_ import CUDA, DISTRIBUTIONS, TENSORRT

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.mark.slow
@pytest.mark.timeout(900)  # exports take a minute where cores are shared
@pytest.mark.parametrize("name", NETWORKS)
def test_one_file_is_eager_at_every_size_and_batch(name, tmp_path, monkeypatch):
    if name != "sd":  # whose file the other tests here use too
        (tmp_path / "cache").mkdir(mode=0o700)
        monkeypatch.setenv("INVFAST_CACHE", str(tmp_path / "cache"))
    before = {entry.key for entry in Cache().entries()}
    module = NETWORKS[name][0]().eval()
    evaluations_are_eagers("onnxruntime", name, module, (1, 8, 8), (3, 16, 8), (2, 24, 40))
    of_this = fingerprint(module).exact  # other workers' tests fill the cache too
    new = (entry.inputs for entry in Cache().entries() if entry.key not in before)
    made = [inputs for inputs in new if inputs["network"] == of_this and inputs["runtime"].startswith("onnx ")]
    assert len(made) <= 1


@pytest.mark.filterwarnings("ignore:inverting at guidance_scale")
def test_inversions_are_eagers(tiny, samples):
    images = [samples[name].image for name in ("peach", "cat", "house")]
    prompts = ["noto peach", "photo cat", ""]
    for guidance in (1.0, 3.0):
        options = {"method": "anderson", "num_inference_steps": 4, "guidance_scale": guidance}
        inversions_are_eagers("onnxruntime", tiny, images, prompts, **options)


@pytest.mark.slow
def test_images_that_are_done_are_left_out(samples):
    images = [samples[name].image for name in ("peach", "cat", "house")]
    # Residuals of the first step's second iteration: 6.7e-3, 8.2e-3 and 6.2e-3, all others far from the tolerance.
    options = {"method": FixedPoint(6, "anderson", tolerance=7.4e-3), "num_inference_steps": 4}
    got, wanted, *_ = inversions_are_eagers("onnxruntime", stable_diffusion(steep=True), images, "", **options)
    assert got.stats.evaluations == wanted.stats.evaluations == (20, 21, 20)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_sizes_that_do_not_halve_evenly_and_a_lora(peach):
    pipe = stable_diffusion()
    for image in (peach.resize((88, 72)), peach):
        plain, *_ = steps_as_exact_as_eagers(inverting(pipe, image, "onnxruntime"), inverting(pipe, image, "eager"))
    pipe.unet.add_adapter(LoraConfig(r=4, target_modules=["to_q", "to_v"], init_lora_weights=False))
    got, *_ = steps_as_exact_as_eagers(inverting(pipe, peach, "onnxruntime"), inverting(pipe, peach, "eager"))
    assert distance(got.latents, plain.latents) > 1e-4


@pytest.fixture
def exported(tmp_path, monkeypatch):
    """`onnx.exported` in a cache of its own, where a stand-in for the conversion notes what it was asked."""
    (tmp_path / "cache").mkdir(mode=0o700)
    monkeypatch.setenv("INVFAST_CACHE", str(tmp_path / "cache"))
    asked = []

    def convert_nothing(kind, module, example, folder, dtype, axes):
        asked.append((kind, {name: list(value.shape) for name, value in example.items()}, dtype, axes))
        (folder / onnx.FILE).write_bytes(b"nothing")

    monkeypatch.setattr(convert, "in_child", convert_nothing)

    def function(module, *shape, dtype=torch.float32, tokens=12):
        example = {"x": torch.zeros(shape), "t": torch.tensor(0)}
        example["encoder_hidden_states"] = torch.zeros(shape[0], tokens, 32)
        return onnx.exported(module, example, spec(module, example, dtype))

    function.asked = asked
    return function


def test_what_makes_another_file(exported):
    unet = stable_diffusion().unet
    first = exported(unet, 1, 4, 8, 8)
    assert exported(unet, 3, 4, 16, 8, tokens=1) == first
    assert exported.asked == [
        (
            "onnx",
            {"x": [2, 4, 16, 24], "t": [], "encoder_hidden_states": [2, 12, 32]},
            torch.float32,
            {"x": [0, 2, 3], "t": [], "encoder_hidden_states": [0, 1]},
        )
    ]
    files = {first, exported(unet, 1, 4, 9, 8), exported(unet, 1, 4, 8, 8, dtype=torch.float16)}
    assert exported.asked[1][3] == {"x": [0], "t": [], "encoder_hidden_states": [0, 1]}
    unet.conv_out.weight.data.mul_(1.01)
    files.add(exported(unet, 1, 4, 8, 8))
    unet.add_adapter(LoraConfig(r=4, target_modules=["to_q"], init_lora_weights=False))
    files.add(exported(unet, 1, 4, 8, 8))
    for part in unet.modules():
        if hasattr(part, "scaling") and isinstance(part.scaling, dict):
            part.scaling = {"default": 0.3}
    files.add(exported(unet, 1, 4, 8, 8))
    assert len(files) == len(exported.asked) == 6


def installed(monkeypatch, *names):
    """Lets the metadata say which distributions of ONNX Runtime there are."""
    real = metadata.version

    def version(name):
        if name in DISTRIBUTIONS:
            if name not in names:
                raise metadata.PackageNotFoundError(name)
            return "1.0"
        return real(name)

    monkeypatch.setattr(metadata, "version", version)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("onnxruntime",), r"installed: onnxruntime 1.0 \(pip uninstall onnxruntime onnxruntime-gpu, then"),
        (DISTRIBUTIONS, "installed: onnxruntime 1.0 and onnxruntime-gpu 1.0, which overwrite each other"),
        ((), "installed: neither onnxruntime nor onnxruntime-gpu"),
    ],
)
def test_the_module_cannot_do_what_the_device_needs(names, message, monkeypatch):
    installed(monkeypatch, *names)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    options = {"free": False, "parameters": 1, "opaque": None}
    with pytest.raises(ValueError, match=f"has no {CUDA}, only CPUExecutionProvider; {message}"):
        runtimes.resolve("onnxruntime", GPU, torch.float32, **options)
    with pytest.raises(RuntimeError, match=f"'onnxruntime_tensorrt' is unavailable: .* no {TENSORRT}, .*; {message}"):
        runtimes.resolve("onnxruntime_tensorrt", GPU, torch.float32, **options)


def test_a_provider_that_does_not_load_is_no_silent_fallback(tiny, peach, monkeypatch):
    release()
    real = onnxruntime.InferenceSession

    class Fallen:
        def __init__(self, *args, **kwargs):
            self.session = real(*args, **kwargs)

        def get_providers(self):
            return ["AzureExecutionProvider"]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Fallen)
    with pytest.raises(RuntimeError, match="could not load CPUExecutionProvider and took AzureExecutionProvider"):
        invert(tiny, peach, num_inference_steps=1, runtime="onnxruntime")


def test_settings_of_the_gpu_providers(exported, monkeypatch):
    """What ONNX Runtime is asked for on a GPU; the session and the GPU are stand-ins."""
    asked = []

    class Session:
        def __init__(self, path, options, providers):
            asked.append(dict(providers))
            (name, settings), *_ = providers
            if name == TENSORRT and not (engine := Path(settings["trt_engine_cache_path"]) / "a.engine").exists():
                engine.write_bytes(b"engine")

        def get_providers(self):
            return list(asked[-1])

        def io_binding(self):
            return None

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: SimpleNamespace(cuda_stream=7))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    unet = stable_diffusion().unet
    inputs = {"x": torch.zeros(2, 4, 8, 8), "t": torch.tensor(0), "encoder_hidden_states": torch.zeros(2, 12, 32)}
    given = spec(unet, inputs, torch.float16, GPU, identity=lambda: "network")
    common = {"device_id": "0", "user_compute_stream": "7"}
    RUNTIMES["onnxruntime"].prepare(unet, inputs, given)
    assert asked == [{CUDA: {**common, "use_tf32": "0"}}]
    for _ in range(2):
        RUNTIMES["onnxruntime_tensorrt"].prepare(unet, inputs, given)
    assert len(asked) == 4  # the engine was built once, and read twice
    assert len(exported.asked) == 1
    assert asked[3][CUDA] == common
    settings = asked[3][TENSORRT]
    assert settings.items() >= {**common, "trt_fp16_enable": "1", "trt_engine_cache_enable": "1"}.items()
    assert settings["trt_profile_min_shapes"] == "x:1x4x8x8,encoder_hidden_states:1x12x32"
    assert settings["trt_profile_max_shapes"] == settings["trt_profile_opt_shapes"]
    assert settings["trt_profile_max_shapes"] == "x:2x4x8x8,encoder_hidden_states:2x12x32"
    assert (Path(settings["trt_engine_cache_path"]) / "a.engine").exists()


def test_a_broken_module(tiny, peach, monkeypatch):
    monkeypatch.delattr(onnxruntime, "get_available_providers")
    with pytest.raises(RuntimeError, match="broken, as removing one of its two distributions leaves it; installed"):
        invert(tiny, peach, runtime="onnxruntime")


@pytest.mark.parametrize("name", ["onnxruntime", "onnx", "onnxscript"])
def test_a_missing_module(name, tiny, peach, monkeypatch):
    find = onnx.importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda each: None if each == name else find(each))
    with pytest.raises(RuntimeError, match=rf"No module named '{name}' \(pip install \"invfast\[onnx\]\""):
        invert(tiny, peach, runtime="onnxruntime")


@pytest.mark.parametrize(
    ("name", "device", "dtype", "message"),
    [
        ("onnxruntime", CPU, torch.bfloat16, "on cpu it computes in float32, not in torch.bfloat16"),
        ("onnxruntime", CPU, torch.float16, "on cpu it computes in float32, not in torch.float16"),
        ("onnxruntime", GPU, torch.bfloat16, "on cuda it computes in float32 or float16, not in torch.bfloat16"),
        ("onnxruntime", torch.device("mps"), torch.float32, "move it to the CPU or an NVIDIA GPU"),
        ("onnxruntime_tensorrt", CPU, torch.float32, "the pipeline is on cpu; move it to an NVIDIA GPU"),
    ],
)
def test_what_it_refuses(name, device, dtype, message):
    assert message in RUNTIMES[name].refuses(device, dtype)
