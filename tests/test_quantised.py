"""Networks whose weights are stored otherwise than they compute: run as they are, to the pipeline's own result."""

import warnings

import pytest
import torch
from tiny import QUICK, stable_diffusion
from torch import nn
from toy import distance

from invfast import demo, invert, metrics, reconstruct
from invfast.denoiser.clone import own_dtype
from invfast.inversion import Inversion
from invfast.methods import FixedPoint


def torchao(kind):
    def change(pipe):
        quantization = pytest.importorskip("torchao.quantization")
        quantization.quantize_(pipe.unet, getattr(quantization, kind)())

    return change


def casting(storage, part="unet"):
    def change(pipe):
        getattr(pipe, part).enable_layerwise_casting(storage_dtype=storage, compute_dtype=torch.float32)

    return change


def dynamic(pipe):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", (DeprecationWarning, UserWarning))
        pipe.unet = torch.ao.quantization.quantize_dynamic(pipe.unet, {nn.Linear}, dtype=torch.qint8)


def sparse(pipe):
    layer = pipe.unet.time_embedding.linear_1
    layer.weight = nn.Parameter(layer.weight.detach().to_sparse_csr(), requires_grad=False)


class Extra(nn.Linear):
    def get_extra_state(self):
        raise RuntimeError("no state outside a training run")


def extra_state(pipe):
    pipe.unet.time_embedding.linear_1.__class__ = Extra


KINDS = {
    "torchao int8 weights": torchao("Int8WeightOnlyConfig"),
    "torchao int8": torchao("Int8DynamicActivationInt8WeightConfig"),
    "torchao float8 weights": torchao("Float8WeightOnlyConfig"),
    "float8 storage": casting(torch.float8_e4m3fn),
    "float8 e5m2 storage": casting(torch.float8_e5m2),
    "bfloat16 storage": casting(torch.bfloat16),
    "a VAE in float8 storage": casting(torch.float8_e4m3fn, "vae"),
    "dynamic quantisation": dynamic,
    "a sparse layer": sparse,
    "an extra state": extra_state,
}


ROUNDED_ANEW = ("torchao int8", "dynamic quantisation")
"""Activations are rounded at every call: an input's last bit moves results by 1e-3, and no fixed point undoes them."""


ALIKE = ("float8 storage", "float8 e5m2 storage", "bfloat16 storage", "torchao float8 weights", "torchao int8 weights")
"""Kinds that another stands for in the fast tests."""


@pytest.mark.filterwarnings("ignore::UserWarning:torch", "ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] if kind in ALIKE else []) for kind in KINDS]
)
def test_they_invert_and_rebuild_as_the_pipeline_itself_does(kind, peach, tmp_path):
    pipe, again = demo.load_pipeline(), 1 if kind in ROUNDED_ANEW else 4
    pipe.set_progress_bar_config(disable=True)
    KINDS[kind](pipe)
    method = FixedPoint(8, "anderson", tolerance=1e-3) if kind in ROUNDED_ANEW else "auto"
    inversion = invert(pipe, peach, "noto peach", method=method, num_inference_steps=4)
    assert inversion.stats.dtype == torch.float32
    inversion.save(tmp_path / "one.safetensors")
    inversion = Inversion.load(tmp_path / "one.safetensors")
    found = reconstruct(pipe, inversion, output_type="latent").latents
    assert metrics.latent_psnr(found, inversion.init_latents).min() > (40 if kind in ROUNDED_ANEW else 50)
    if again == 1:
        inversion = invert(pipe, peach, "noto peach", method="ddim", num_inference_steps=1)
        found = reconstruct(pipe, inversion, output_type="latent").latents
    given = {"latents": inversion.latents, "guidance_scale": 1, "output_type": "latent"}
    assert distance(found, pipe("noto peach", 64, 64, again, **given).images) < 1e-5


def four_bits(layer, bitsandbytes):
    made = bitsandbytes.nn.Linear4bit(layer.in_features, layer.out_features, compute_dtype=torch.float32)
    made.weight = bitsandbytes.nn.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4")
    return made


def eight_bits(layer, bitsandbytes):
    made = bitsandbytes.nn.Linear8bitLt(layer.in_features, layer.out_features, has_fp16_weights=False)
    made.weight = bitsandbytes.nn.Int8Params(layer.weight.data, requires_grad=False, has_fp16_weights=False)
    return made


def of_a_gguf_file(layer, gguf):
    from diffusers.quantizers.gguf.utils import GGUFLinear, GGUFParameter

    kind = gguf.GGMLQuantizationType.Q8_0
    made = GGUFLinear(layer.in_features, layer.out_features, True, compute_dtype=torch.float32)
    quantised = torch.from_numpy(gguf.quants.quantize(layer.weight.detach().numpy(), kind))
    made.weight = GGUFParameter(quantised, quant_type=kind)
    return made


LAYERS = {"nf4": ("bitsandbytes", four_bits), "int8": ("bitsandbytes", eight_bits), "Q8_0": ("gguf", of_a_gguf_file)}


@pytest.mark.parametrize("kind", LAYERS)
def test_layers_of_other_libraries(kind):
    """bitsandbytes' and GGUF's, where these are installed; they are in no extra."""
    library, make = LAYERS[kind]
    library = pytest.importorskip(library)
    pipe, x = stable_diffusion(), torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    for part in pipe.unet.modules():
        for name, layer in list(part.named_children()):
            if type(layer) is nn.Linear and layer.bias is not None and layer.in_features % 32 == 0:
                new = make(layer, library)
                new.bias = layer.bias
                setattr(part, name, new.to("cpu"))
    found = invert(pipe, x, ["a cat", ""], method="anderson", num_inference_steps=4)
    assert "and runs as it is" in found.stats.reason
    assert found.provenance["network.weights"] is None  # cannot tell
    back = reconstruct(pipe, found, output_type="latent").latents
    given = {"latents": found.latents, "guidance_scale": 1, "output_type": "latent"}
    assert distance(back, pipe(["a cat", ""], 64, 64, 4, **given).images) < 1e-5


def test_the_dtype_is_that_of_the_arithmetic():
    pipe = stable_diffusion()
    casting(torch.float8_e4m3fn)(pipe)
    assert own_dtype(pipe.unet) == torch.float32
    assert own_dtype(nn.Linear(2, 2).to(torch.float8_e4m3fn)) == torch.float32
    assert own_dtype(nn.Linear(2, 2, dtype=torch.float16)) == torch.float16


@pytest.mark.parametrize("kind", ["float8 storage", "a sparse layer", "an extra state"])
def test_the_remedy_for_another_dtype_works(kind, peach):
    pipe = stable_diffusion()
    KINDS[kind](pipe)
    with pytest.raises(ValueError, match="and stays float32; pass dtype='float32' or None"):
        invert(pipe, peach, **QUICK, dtype="bfloat16")
    assert invert(pipe, peach, **QUICK, dtype="float32").stats.dtype == torch.float32


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime", "compile"])
def test_what_cannot_be_read_is_not_exported(runtime, peach):
    pipe = stable_diffusion()
    extra_state(pipe)
    with pytest.raises(ValueError, match="has a Extra with a state of its own, and runs as it is"):
        invert(pipe, peach, **QUICK, runtime=runtime)


def test_nothing_to_read_is_said_in_the_provenance(peach):
    pipe = stable_diffusion()
    extra_state(pipe)
    made_with = invert(pipe, peach, **QUICK).provenance
    assert made_with["network.weights"] is None
    assert made_with["network.unreadable"] == "has a Extra with a state of its own"
    assert made_with["vae.weights"] is not None
