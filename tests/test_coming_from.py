"""Every call on the page "coming from other code" against its formula written out, on the grid its row names."""

import re
from functools import partial
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler
from test_flow_methods import SHIFTED, both_ways, drawn, velocity
from toy import distance, grid, network, noise_for, run

from invfast import Schedule
from invfast.methods.spelling import parse
from invfast.methods.whiten import draws
from invfast.reference import ddim, easyinv, fixed_point, flow, forward_start, noise_maps, renoise, reversible

PAGE = (Path(__file__).parents[1] / "docs" / "coming_from.md").read_text()
DIFFUSION, FLOWS = (
    [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in part.splitlines() if line.startswith("| ")]
    for part in re.split(r"^## .*$", PAGE, flags=re.MULTILINE)[1:3]
)
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
GRIDS = {
    "any": {"steps_offset": 1, "set_alpha_to_one": False},
    "offset 0": {"steps_offset": 0, "set_alpha_to_one": False},
    "alpha = 1": {"steps_offset": 1, "set_alpha_to_one": True},
}
STEPS = 20  # enough for every window to hold a step


def one_by_one(function, model, x, nodes, **settings):
    return torch.cat([function(model, row, nodes, **settings) for row in x.split(1)])


def jumped(model, x, nodes, steps):
    noise = noise_for(x.shape, 23530).double()
    return forward_start.invert(model, x, nodes, steps=steps, noise=noise, inner=ddim.invert)


def renoised(model, x, nodes, **settings):
    """At the published strengths."""
    uniform, noise = draws(len(nodes), settings["iterations"] + 2, x.shape[1]), noise_for(x.shape, 7865).double()
    given = {"lambda_kl": 0.065, "lambda_ac": 20.0, "uniform": uniform, **settings}
    each = zip(x.split(1), noise.split(1), strict=True)
    return torch.cat([renoise.invert(model, row, nodes, noise=n, **given) for row, n in each])


def first(function, **settings):
    return lambda model, x, nodes: function(model, x, nodes, **settings)[0]


def mapped(model, x, nodes):
    return noise_maps.invert(model, x, nodes, noise=noise_for((len(x), len(nodes), *x.shape[1:]), 0).double())[0]


SD14, SDXL = {"eta": 0.5, "start": 0.05, "length": 0.2}, {"eta": 0.8, "start": 0.85, "length": 0.1}
CHANNEL = "first_iterations=5, shifts=channel"
TWINS = {
    "ddim": ddim.invert,
    "ddim(source)": partial(ddim.invert_from_source, first_t=0),
    "null_text(stop=after)": ddim.invert,  # what is tuned: test_tuned.py
    "negative_prompt": None,  # needs text, and inverts as its inner method does: test_tuned.py
    "direct": ddim.invert,
    "fixed_point(5)": partial(one_by_one, fixed_point.invert, iterations=5),
    "averaged(5)": partial(one_by_one, fixed_point.invert, iterations=5, mixing="averaged"),
    "anderson(5)": partial(one_by_one, fixed_point.invert, iterations=5, mixing="anderson"),
    "warm_start(first=source)": partial(one_by_one, fixed_point.invert, iterations=1, history=1, first_t=0),
    "easyinv": partial(easyinv.invert_after, **SD14),
    "easyinv(variant=before)": partial(easyinv.invert_before, **SD14),
    "easyinv_sdxl(variant=before)": partial(easyinv.invert_before, **SDXL),
    "forward_start(2)": partial(jumped, steps=2),
    f"renoise(9, {CHANNEL})": partial(renoised, iterations=9, first_iterations=5),
    "renoise(1, shifts=channel)": partial(renoised, iterations=1),
    f"renoise(3, average=False, {CHANNEL})": partial(renoised, iterations=3, first_iterations=5, average=False),
    "gnri(2, prior=0.1)": partial(one_by_one, renoise.invert_by_sign, iterations=2, prior=0.1),
    "edict": first(reversible.edict_invert),
    "edict(alternate=False)": first(reversible.edict_invert, alternate=False),
    "bdia(first=source)": first(reversible.bdia_invert, first_t=0),
    "bdia(0.5, first=source)": first(reversible.bdia_invert, gamma=0.5, first_t=0),
    "obelm(source)": first(reversible.obelm_invert, first_t=0),
    "noise_maps": mapped,
}
FLOW_TWINS = {
    "euler": flow.euler_invert,
    "rf_solver": flow.rf_solver_invert,
    "fireflow": flow.fireflow_invert,
    "rf_inversion": lambda v, x, sigmas: flow.rf_inversion_invert(v, x, sigmas, drawn((2, 4, 5, 3), 0), 0.5),
    "warm_start(first=source)": partial(flow.implicit_invert, warm=True, first_at_source=True),
}


def calls(rows):
    return [row[1].strip("`") for row in rows if row[1].startswith("`")]


def test_every_call_has_a_twin():
    assert set(calls(DIFFUSION)) == set(TWINS)
    assert calls(FLOWS) == list(FLOW_TWINS)


@pytest.mark.parametrize("row", [row for row in DIFFUSION if TWINS.get(row[1].strip("`"))], ids=lambda row: row[0])
def test_a_call_gives_what_its_row_says(row, x0):
    call, config = row[1].strip("`"), GRIDS[row[2]]
    steps, x0 = (3, x0[:1]) if "renoise" in call else (STEPS, x0)  # gradients by autograd
    nodes = Schedule.from_scheduler(DDIMScheduler(**SD, **config), steps)
    abar = float(nodes.alpha[0] ** 2)
    whole = [(0, abar, abar)] * nodes.dropped + grid(nodes)  # as published code walks it
    found = run(parse(call), nodes, x0).state["latents"]
    tolerance = 1e-8 if "anderson" in call else 1e-10
    assert distance(found, TWINS[call](network, x0, whole)) < tolerance


@pytest.mark.parametrize("call", FLOW_TWINS)
def test_a_flows_call_gives_what_its_row_says(call):
    x, found, *_ = both_ways(parse(call))
    assert distance(found, FLOW_TWINS[call](velocity, x, SHIFTED)) < 1e-10


def test_the_way_up_of_negative_prompt_is_its_inner_methods():
    assert parse("negative_prompt").method == parse("ddim")
