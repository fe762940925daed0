"""What runtime="auto" takes, and why."""

import torch

from invfast import runtimes
from invfast.runtimes import RUNTIMES


def resolve(**changes):
    options = {"free": True, "parameters": 10**9, "opaque": None, "dtype": torch.float32}
    options |= {"device": torch.device("cpu"), "name": "auto"}
    return runtimes.resolve(**{**options, **changes})


def test_auto_explains_itself(monkeypatch):
    assert resolve(parameters=10**6).runtime.name == "eager"
    assert "1.0 M parameters" in resolve(parameters=10**6).reason
    assert resolve(opaque="hooks").reason == "hooks"
    cuda = torch.device("cuda")
    monkeypatch.setattr(RUNTIMES["compile"], "unavailable", lambda: None)
    assert (resolve(device=cuda).runtime.name, resolve(device=cuda).faster.name) == ("eager", "compile")
    assert "prepare(runtime='compile')" in resolve(device=cuda).reason
    assert resolve(device=cuda, parameters=10**6)[::3] == (RUNTIMES["eager"], None)
    monkeypatch.setattr(RUNTIMES["compile"], "unavailable", lambda: "no triton")
    assert resolve(device=cuda).runtime.name == "eager"
    assert "no engine of it in the cache; no triton" in resolve(device=cuda).reason
    assert resolve(device=torch.device("mps")).runtime.name == "eager"
    assert resolve(free=False)[:2] == (RUNTIMES["openvino"], torch.float32)
    fast = runtimes.selftest.Measured(2.0, 1e-3)
    monkeypatch.setattr(runtimes, "bfloat16_on_cpu", lambda: fast)
    monkeypatch.setattr(RUNTIMES["openvino"], "refuses", lambda device, dtype: None)
    assert resolve()[:2] == (RUNTIMES["openvino"], torch.bfloat16)
    assert "bfloat16 measured 2.0 x float32, error 1e-03" in resolve().reason
    assert resolve(free=False).dtype == torch.float32
    monkeypatch.setattr(RUNTIMES["openvino"], "unavailable", lambda: "not here")
    assert resolve()[:2] == (RUNTIMES["eager"], torch.bfloat16)
    assert "openvino: not here" in resolve().reason


def test_the_self_test_measures():
    speed, error = runtimes.bfloat16_on_cpu()
    assert 0.01 < speed < 20
    assert 1e-4 < error < 2e-2
    assert not runtimes.selftest.Measured(5.0, 0.1).pays
    assert not runtimes.selftest.Measured(1.1, 0.001).pays
