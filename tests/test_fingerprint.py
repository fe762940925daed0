"""Whether two networks are the same one: what changes the result is noticed, what does not is not."""

import copy
import functools
import warnings

import pytest
import torch
from accelerate import cpu_offload
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from tiny import QUICK, stable_diffusion
from torch import nn

from invfast import digests, invert, reconstruct
from invfast.digests import checksums
from invfast.fingerprint import fingerprint

LORA = LoraConfig(r=2, lora_alpha=2, target_modules=["to_k", "to_v"], init_lora_weights=False)


def with_lora(names=("first",)):
    torch.manual_seed(1)
    unet = stable_diffusion().unet
    for name in names:
        unet.add_adapter(LORA, name)
    unet.set_adapters(list(names))
    return unet


def scale(unet, factor, adapter="first"):
    for part in unet.modules():
        if isinstance(part, BaseTunerLayer):
            part.set_scale(adapter, factor)


def freeu(unet):
    unet.enable_freeu(0.9, 0.2, 1.1, 1.2)


def patched(unet):
    unet.mid_block.forward = lambda *args, **kwargs: args[0]


def other_activation(unet):
    unet.conv_act = nn.GELU()


def plain_tensor(unet):
    unet.mid_block.attentions[0].offset = torch.ones(3)


CHANGES = {
    "a LoRA's scale": (with_lora, lambda unet: scale(unet, 0.5)),
    "adapters disabled": (with_lora, lambda unet: unet.disable_adapters()),
    "one adapter of two": (lambda: with_lora(("first", "second")), lambda unet: unet.set_adapters(["first"])),
    "FreeU": (lambda: stable_diffusion().unet, freeu),
    "an attribute": (lambda: stable_diffusion().unet, lambda unet: setattr(unet.mid_block.resnets[0], "time_scale", 2)),
    "a patched forward": (lambda: stable_diffusion().unet, patched),
    "another activation": (lambda: stable_diffusion().unet, other_activation),
    "a tensor that is no buffer": (lambda: stable_diffusion().unet, plain_tensor),
    "fused weights": (
        lambda: (unet := stable_diffusion().unet).fuse_qkv_projections() or unet,
        lambda unet: unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_qkv.weight.data.neg_(),
    ),
    "another attention": (
        lambda: stable_diffusion().unet,
        lambda unet: setattr(unet.mid_block.attentions[0].transformer_blocks[0].attn1, "scale", 0.3),
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_the_result_is_another_network(change):
    make, do = CHANGES[change]
    unet = make()
    before = fingerprint(unet)
    do(unet)
    after = fingerprint(unet)
    assert (before.weights, before.settings) != (after.weights, after.settings)
    assert before.exact != after.exact


def compiled(unet):
    return torch.compile(unet)


def compiled_inside(unet):
    unet.down_blocks[0] = torch.compile(unet.down_blocks[0])
    unet.mid_block.compile()
    return unet


def fused(unet):
    unet.fuse_qkv_projections()
    return unet


def sliced(unet):
    unet.set_attention_slice(1)
    return unet


def freeu_off(unet):
    freeu(unet)
    unet.disable_freeu()
    return unet


def lora_off(unet):
    unet.add_adapter(LORA, "first")
    unet.disable_adapters()
    return unet


def lora_unloaded(unet):
    lora_off(unet)
    unet.delete_adapters("first")
    return unet


def lora_scaled_by_zero(unet):
    unet.add_adapter(LORA, "first")
    scale(unet, 0.0)
    return unet


def offloaded_in_groups(unet):
    unet.enable_group_offload(torch.device("cpu"), offload_type="leaf_level")
    return unet


def checkpointing(unet):
    unet.enable_gradient_checkpointing()
    unet.train()
    return unet


SAME = (
    copy.deepcopy,
    *(compiled, compiled_inside, fused, sliced, freeu_off, lora_off, lora_unloaded, lora_scaled_by_zero),
    *(offloaded_in_groups, checkpointing),
)


@pytest.mark.parametrize("change", SAME, ids=lambda change: change.__name__)
def test_what_does_not_change_the_result_is_the_same_network(change):
    before = fingerprint(stable_diffusion().unet)
    after = fingerprint(change(stable_diffusion().unet))
    assert (before.weights, before.settings) == (after.weights, after.settings)


def test_an_adapters_name_is_none_of_its_effects():
    first, second = fingerprint(with_lora(("first",))), fingerprint(with_lora(("a style",)))
    assert (first.weights, first.settings) == (second.weights, second.settings)


class Extra(nn.Linear):
    def get_extra_state(self):
        raise RuntimeError("no state outside a training run")


def sparse(module):
    module.weight = nn.Parameter(module.weight.detach().to_sparse_csr(), requires_grad=False)
    return module


def subclassed(module):
    class Packed(torch.Tensor):
        pass

    module.weight = nn.Parameter(module.weight.detach().as_subclass(Packed), requires_grad=False)
    return module


def dynamic(module):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.ao.quantization.quantize_dynamic(nn.Sequential(module), {nn.Linear}, dtype=torch.qint8)


def offloaded(module):
    module = nn.Sequential(module)
    cpu_offload(module, "cpu")
    return module


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda module: Extra(4, 4), "has a Extra with a state of its own"),
        (sparse, "has weights of layout torch.sparse_csr"),
        (subclassed, "has weights of class Packed"),
        (dynamic, "with packed weights"),
        (lambda module: nn.LazyLinear(4), "has weights of class UninitializedParameter"),
        (offloaded, "has its weights offloaded"),
    ],
)
def test_what_cannot_be_read_is_not_guessed(make, says):
    found = fingerprint(make(nn.Linear(4, 4)))
    assert (found.exact, found.weights, found.settings) == (None, None, None)
    assert says in found.unreadable


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int8, torch.complex64], ids=str)
@pytest.mark.parametrize("size", [(4, 4), (7, 9), (512, 600)])
def test_checksums_see_every_sign_and_place(dtype, size):
    g = torch.Generator().manual_seed(0)
    x = torch.randint(1, 100, size, generator=g).to(dtype)
    mask = torch.zeros(size, dtype=torch.bool)
    mask[:, ::2] = True
    changes = {
        "all signs": -x,
        "every second column's sign": torch.where(mask, -x, x),
        "two signs": torch.where(torch.arange(x.numel()).view(size) < 2, -x, x),
        "rows swapped": x.flip(0),
        "columns swapped": x.flip(1),
        "rolled": x.roll(1, 0),
        "all zero": torch.zeros_like(x),
        "one value": torch.where(torch.arange(x.numel()).view(size) == x.numel() - 1, x + 1, x),
    }
    sums = {name: checksums([value])[0] for name, value in {"none": x, **changes}.items()}
    assert len(set(sums.values())) == len(sums)
    assert checksums([x, x.t().contiguous().t(), x.flatten()]) == [sums["none"]] * 3


def test_checksums_are_the_same_wherever_a_tensor_lies_in_memory():
    x = torch.randn(70_001, generator=torch.Generator().manual_seed(0))
    odd = torch.cat([torch.zeros(3), x])[3:]
    assert odd.data_ptr() % 8
    assert checksums([x, odd, x[:0]]) == [*checksums([x]) * 2, b""]


def test_a_devices_sums_are_a_cpus():
    rows = torch.randint(-(2**63), 2**63 - 1, (3, digests.BLOCK), generator=torch.Generator().manual_seed(0))
    for each in (rows, rows[:, :77].contiguous()):
        assert torch.equal(digests._sums(each), digests._sums_at_once(each))


@pytest.mark.parametrize("after", ["scale", "disabled", "freeu"])
def test_a_network_that_changed_is_warned_of(peach, after):
    pipe = stable_diffusion()
    pipe.unet = with_lora()
    if after == "freeu":
        freeu(pipe.unet)
    inversion = invert(pipe, peach, method="ddim", **QUICK)
    change = {"scale": functools.partial(scale, factor=0.3), "disabled": lambda unet: unet.disable_adapters()}
    change.get(after, lambda unet: unet.disable_freeu())(pipe.unet)
    with pytest.warns(UserWarning, match=r"the network's (settings|weights)"):
        reconstruct(pipe, inversion, output_type="latent")


@pytest.mark.parametrize("change", [sliced, fused, lora_off], ids=lambda change: change.__name__)
def test_a_network_written_otherwise_is_not_warned_of(peach, change):
    pipe = stable_diffusion()
    inversion = invert(pipe, peach, method="ddim", **QUICK)
    pipe.unet = change(pipe.unet)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reconstruct(pipe, inversion, output_type="latent")
