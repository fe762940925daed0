"""torch.compile: what its runtime does beside computing what eager does."""

import gc
import logging
import warnings
import weakref
from dataclasses import replace

import pytest
import tiny as networks
import tiny_transformers
import torch
from exact import as_exact_as_eager
from test_runtimes import ready
from toy import distance

from invfast import invert, release, runtimes
from invfast.denoiser.clone import private
from invfast.denoiser.fused import fused
from invfast.denoiser.precompute import PARTS, Precomputed, reduced
from invfast.runtimes import RUNTIMES, compiled
from invfast.runtimes.eager import Eager


@pytest.mark.slow
def test_compile_is_one_graph_that_is_never_compiled_again(tiny, peach):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    release()
    invert(tiny, peach, num_inference_steps=50, runtime="compile")
    counters = torch._dynamo.utils.counters
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == 1
    invert(tiny, tiny.vae.config.scaling_factor * torch.randn(1, 4, 8, 8), num_inference_steps=7, runtime="compile")
    assert counters["stats"]["unique_graphs"] == 1
    assert torch._inductor.config.freezing is False


class Scaled(torch.nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.full((4,), float(factor)), requires_grad=False)

    def forward(self, x, t, return_dict=False):
        return (x * self.factor + t,)


@pytest.mark.skipif(RUNTIMES["compile"].unavailable() is not None, reason="torch.compile cannot run here")
def test_compile_serves_any_number_of_networks_and_lets_them_go():
    """Dynamo by itself compiles one piece of code eight times, then refuses, and keeps the results."""
    x, t, factors = torch.ones(1, 4), torch.tensor(1), range(9)
    modules = [Scaled(factor) for factor in factors]
    networks = [ready("compile", module, {"x": x, "t": t}) for module in modules]
    assert [network(x, t).tolist() for network in networks] == [[[factor + 1.0] * 4] for factor in factors]
    kept = [weakref.ref(module.factor) for module in modules]
    del modules, networks
    gc.collect()
    assert not any(each() is not None for each in kept)


class Stack(torch.nn.Module):
    """As many blocks of a kind as asked for, said to be repeated, and a layer beside them."""

    _repeated_blocks = ("Scaled",)

    def __init__(self, blocks, beside=1):
        super().__init__()
        self.blocks = torch.nn.ModuleList(Scaled(2) for _ in range(blocks))
        self.beside = torch.nn.Parameter(torch.zeros(beside), requires_grad=False)

    def forward(self, x, t, return_dict=False):
        for block in self.blocks:
            (x,) = block(x, t)
        return (x,)


@pytest.mark.parametrize(("blocks", "beside", "regional"), [(3, 1, True), (2, 1, False), (3, 100, False)])
def test_what_a_network_consists_of_is_compiled_once_for_all_of_a_kind(monkeypatch, blocks, beside, regional):
    asked = []
    monkeypatch.setattr(torch, "compile", lambda function, **options: asked.append(function) or function)
    module, x, t = Stack(blocks, beside), torch.ones(1, 4), torch.tensor(0)
    found = ready("compile", module, {"x": x, "t": t})(x, t)
    assert found.tolist() == [[2.0**blocks] * 4]
    assert [function.__name__ for function in asked] == ["forward" if regional else "network"]
    assert asked[0].__code__ is not Scaled.forward.__code__
    assert not any("forward" in vars(block) for block in module.blocks)


@pytest.mark.slow
def test_a_transformer_is_compiled_by_its_blocks_and_left_alone():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    pipe = tiny_transformers.flux(layers=3)
    x = torch.randn(1, pipe.vae.config.latent_channels, 8, 8, generator=torch.Generator().manual_seed(0))
    options = {"method": "ddim", "num_inference_steps": 2}
    eager, exact = (invert(pipe, x, runtime="eager", dtype=d, **options).latents for d in ("float32", "float64"))
    found = invert(pipe, x, runtime="compile", **options)
    as_exact_as_eager(found.latents, eager, exact)
    kinds = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert 2 <= kinds <= 3  # one of two whose inputs lie otherwise after the first block
    assert not torch._dynamo.utils.counters["graph_break"]
    assert not any("forward" in vars(part) for part in pipe.transformer.modules())


class Slow(Eager):
    """Stands in for a compiler: makes a network of its own, which is kept."""

    name, made = "slow", 0
    traits = replace(Eager.traits, exports=True)

    def prepare(self, *given):
        self.made += 1
        return super().prepare(*given)


@pytest.fixture
def slow(monkeypatch):
    """What auto would take on a GPU if it paid, on this machine."""
    runtime = Slow()
    original = runtimes.resolve
    auto = lambda name, *given, **named: (  # noqa: E731
        original(name, *given, **named)._replace(faster=runtime) if name == "auto" else original(name, *given, **named)
    )
    monkeypatch.setattr(runtimes, "resolve", auto)
    release()
    yield runtime
    release()


def test_auto_takes_what_is_ready_and_makes_nothing(slow, tiny):
    x = torch.randn(1, 4, 8, 8)
    find = lambda given, **options: invert(tiny, given, num_inference_steps=2, **options).stats  # noqa: E731
    assert (find(x).runtime, slow.made) == ("eager", 0)
    assert (find(x, runtime=slow).runtime, slow.made) == ("slow", 1)
    found = find(x)
    assert (found.runtime, slow.made) == ("slow", 1)
    assert "ready in this process" in found.reason
    # Another size, another batch, another condition would have to be made.
    assert find(torch.randn(1, 4, 16, 8)).runtime == "eager"
    assert find(torch.randn(2, 4, 8, 8)).runtime == "eager"
    assert find(x, guidance_scale=2.0).runtime == "eager"
    assert slow.made == 1
    release()
    assert (find(x).runtime, slow.made) == ("eager", 1)


def test_auto_makes_it_for_enough_samples(slow, tiny, monkeypatch):
    monkeypatch.setattr(runtimes, "WORTH_COMPILING", 6)
    counts = [(1, 5), (1, 6), (2, 2), (2, 3)]
    found = [invert(tiny, torch.randn(b, 4, 8, 8), num_inference_steps=n).stats for b, n in counts]
    assert [stats.runtime for stats in found] == ["eager", "slow", "eager", "slow"]
    assert "6 samples in one call" in found[1].reason


def test_modes(monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "compile", lambda network, **options: asked.append(options.get("mode")) or network)
    inputs = {"x": torch.ones(1, 4), "t": torch.tensor(1)}
    for name in ("compile", "compile_autotune"):
        spec = runtimes.Spec(torch.device("cuda"), torch.float32, str)
        RUNTIMES[name].prepare(Scaled(1), inputs, spec)
    assert asked == [None, "max-autotune-no-cudagraphs"]
    cpu = torch.device("cpu")
    assert "take runtime='compile'" in RUNTIMES["compile_autotune"].refuses(cpu, torch.float32)
    assert RUNTIMES["compile"].refuses(cpu, torch.float32) is None
    assert [RUNTIMES["compile"].fuses(torch.device(kind)) for kind in ("cpu", "cuda")] == [False, True]


def state():
    from torch._inductor import select_algorithm

    names = ("torch._inductor.utils", "torch._dynamo.convert_frame")
    levels = [logging.getLogger(name).isEnabledFor(logging.WARNING) for name in names]
    return levels, list(warnings.filters), select_algorithm.PRINT_AUTOTUNE


def fail_aloud():
    with compiled._quiet():
        assert state()[::2] == ([False, False], False)
        warnings.warn_explicit("tensor cores", UserWarning, "compile_fx.py", 1, module="torch._inductor.compile_fx")
        warnings.warn_explicit("the caller's", UserWarning, "app.py", 1, module="app")
        raise KeyError("as a compiler does")


def test_compiling_is_quiet_and_leaves_no_trace():
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        before = state()
        with pytest.raises(KeyError):
            fail_aloud()
        assert state() == before
    assert [str(each.message) for each in seen] == ["the caller's"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_fused_projections_are_the_networks_own(dtype):
    unet = networks.stable_diffusion().unet
    generator = torch.Generator().manual_seed(4)
    x, t = torch.randn(2, 4, 16, 8, generator=generator), torch.tensor(501)
    embeds = torch.randn(2, 12, 32, generator=generator)
    before = Precomputed(unet, PARTS, dtype)
    names = set(unet.state_dict())
    with torch.inference_mode():
        exact = private(unet, torch.float64, torch.channels_last)(x.double(), t, embeds.double()).sample
        eager = private(unet, dtype, torch.channels_last)(x.to(dtype), t, embeds.to(dtype)).sample
        whole, cut = (private(unet, dtype, torch.channels_last) for _ in range(2))
        found = [fused(whole)(x.to(dtype), t, embeds.to(dtype)).sample]
        given = before.times(t[None])(t), before.prompt(embeds.to(dtype))
        found.append(fused(reduced(cut, PARTS))(x.to(dtype), *given).sample)
    assert sum(name.endswith("to_qkv.weight") for name in whole.state_dict()) > 0
    assert set(unet.state_dict()) == names
    for each in found:
        if dtype == torch.float64:
            torch.testing.assert_close(each, exact, rtol=1e-10, atol=1e-12)
        else:
            as_exact_as_eager([each], [eager], [exact])


def test_projections_that_are_more_than_plain_stay():
    unet = private(networks.stable_diffusion().unet, torch.float32, torch.preserve_format)
    first, *others = [m for m in unet.modules() if hasattr(m, "to_q") and not m.is_cross_attention]

    class Adapted(torch.nn.Linear):
        """As a LoRA wraps a layer."""

    first.to_k = Adapted(first.to_k.in_features, first.to_k.out_features, bias=first.to_k.bias is not None)
    if others:
        others[0].processor = object()
    fused(unet)
    assert all(hasattr(layer, "to_q") for layer in [first, *others[:1]])
    assert all(hasattr(layer, "to_qkv") for layer in others[1:])


@pytest.mark.slow
def test_a_float64_network_is_compiled_without_packing_its_weights(tiny):
    options = {"method": "ddim", "num_inference_steps": 2, "dtype": "float64"}
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    found = invert(tiny, x, runtime="compile", **options)
    assert found.stats.runtime == "compile"
    assert distance(found.latents, invert(tiny, x, runtime="eager", **options).latents) < 1e-12
