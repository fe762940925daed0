"""OpenVINO: what its runtime does beside computing what eager does."""

import os
import subprocess
import sys
from xml.etree import ElementTree

import pytest
import torch
from exact import as_exact_as_eager
from test_runtimes import evaluated, ready
from tiny import spec, stable_diffusion

from invfast import invert
from invfast.runtimes import RUNTIMES, convert


@pytest.mark.slow
def test_times_are_not_rounded_where_the_rest_is(tmp_path):
    module, device, g = stable_diffusion().unet.eval(), torch.device("cpu"), torch.Generator().manual_seed(0)
    x, embeds = torch.randn(1, 4, 16, 16, generator=g), torch.randn(1, 12, 32, generator=g)
    inputs = {"x": x, "t": torch.tensor(0), "encoder_hidden_states": embeds}
    convert.in_child("openvino", module, inputs, tmp_path)
    layers = ElementTree.parse(tmp_path / "model.xml").findall("layers/layer")
    marked = {layer.get("type") for layer in layers if layer.find("rt_info/attribute[@name='precise']") is not None}
    assert {"Sin", "Cos", "Multiply"} <= marked
    assert not {"MatMul", "Convolution", "Const", "Parameter"} & marked
    runtime = RUNTIMES["openvino"]
    if runtime.refuses(device, torch.bfloat16):
        return  # on such a CPU the marks are all there is to see
    network = runtime.prepare(module, inputs, spec(module, inputs, torch.bfloat16))
    eager, exact = (ready("eager", module, inputs, dtype) for dtype in (torch.bfloat16, torch.float64))
    runs = evaluated(network, inputs), evaluated(eager, inputs, torch.bfloat16), evaluated(exact, inputs, torch.float64)
    for got, wanted, exactly in zip(*runs, strict=True):  # a late time that is rounded is off by a radian and more
        as_exact_as_eager(got, wanted, exactly)


@pytest.mark.slow  # as tests/test_offline.py has it of all that runs
def test_it_reports_nothing(tmp_path):
    script = (
        "from invfast.runtimes import RUNTIMES; print(RUNTIMES['openvino'].unavailable()); import openvino_telemetry"
    )
    env = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "None\n"
    assert not (tmp_path / "intel").exists()


def test_it_is_missing(tiny, peach, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match=r"No module named 'openvino' \(pip install \"invfast\[openvino\]\"\)"):
        invert(tiny, peach, runtime="openvino")
