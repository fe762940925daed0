"""What runs between two evaluations of the network: at most two kernels, and nothing that waits for the device.

A method whose steps residuals cut short also masks the images that are done, in small kernels of torch's own.
"""

from itertools import pairwise

import pytest
import torch
from test_methods import schedule
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from toy import noise_for

from invfast.demo.reparametrised import as_flow
from invfast.executors import Plain
from invfast.integrate import Hooks, integrate
from invfast.methods import METHODS, FixedPoint, Problem
from invfast.ops.registry import checked, register

READS = ("_local_scalar_dense", "aten.item", "nonzero")
MASKED = 10
EXTRA = {"anderson, warm": FixedPoint(4, "anderson", "quadratic"), "plain, warm": FixedPoint(2, warm_start="linear")}
ELSEWHERE = {"noise_maps", "renoise", "gnri", "null_text", "prompt_tuning", "direct"}


class Launches(TorchDispatchMode):
    """Operators that would launch a kernel on a GPU: all but views and no-ops. An op of ours counts as one."""

    def __init__(self):
        super().__init__()
        self.found, self.evaluations = [], 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        given = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        results = [x for x in tree_leaves(out) if isinstance(x, torch.Tensor)]
        moves_nothing = results and all(x.untyped_storage().data_ptr() in given for x in results)
        if function._schema.is_mutable or not (moves_nothing or "empty" in str(function) or "detach" in str(function)):
            self.found.append(str(function))
        return out


@pytest.mark.parametrize("name", sorted((METHODS.keys() - ELSEWHERE) | EXTRA.keys()))
def test_at_most_two_launches_an_evaluation(name, x0):
    method = {**METHODS, **EXTRA}[name]
    kernels = checked("public", register("invfast"))
    grid, mode = as_flow(schedule()) if method.flow_only else schedule(), Launches()
    stepper = method.inverter(Problem(grid, draw=noise_for, kernels=kernels, embeds=(torch.zeros(3, 2, 5),)))

    def predict(x, t, samples=None):
        mode.evaluations += 1
        return (x.detach(),)

    predict.dtype = torch.float32
    marks, limit = [], 2 if getattr(stepper, "iterations", None) is None else MASKED

    def mark():
        marks.append((len(mode.found), mode.evaluations))

    with mode:  # marks lie before each step, so that what the loop itself does behind a step counts
        integrate(Plain(stepper, predict), {"latents": x0.float()}, grid, Hooks(interrupted=mark))
    for (launches, evaluations), (then, so_many) in pairwise(marks):
        assert then - launches <= limit * (so_many - evaluations)
    within = mode.found[marks[0][0] : marks[-1][0]]
    assert within
    assert not [call for call in within if any(name in call for name in READS)]
