"""torch.compile: what its runtime does beside computing what eager does."""

import gc
import weakref

import pytest
import torch
from test_runtimes import ready

from invfast import invert, runtimes
from invfast.runtimes import RUNTIMES


@pytest.mark.slow
def test_compile_is_one_graph_that_is_never_compiled_again(tiny, peach):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    runtimes.release()
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
