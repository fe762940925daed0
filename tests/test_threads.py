"""Threads: several callers at once, on one pipeline and on several, get what each alone would, first calls included."""

import subprocess
import sys
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
from recorded import Recorder
from test_runtimes import ready
from tiny import stable_diffusion
from together import THREADS, together

from invfast import invert, reconstruct, release, run, runtimes
from invfast.denoiser import Denoiser
from invfast.methods import FixedPoint
from invfast.runtimes import RUNTIMES, Spec
from invfast.store import Store

CPU = torch.device("cpu")
TEXTS = ["noto peach", "", "photo cat photo cat photo cat", "noto red apple"]


def noise(j):
    return torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(j))


def there_and_back(pipe, j, runtime="eager", method="anderson"):
    """(latents, image) of one inversion and its way back."""
    found = invert(pipe, noise(j), TEXTS[j], method=method, num_inference_steps=2, runtime=runtime)
    return found.latents, reconstruct(pipe, found, runtime=runtime, output_type="pt").images


def same(found, wanted):
    return all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


# Whole calls


@pytest.mark.parametrize("runtime", ["eager", "openvino", pytest.param("onnxruntime", marks=pytest.mark.timeout(900))])
def test_one_pipeline_serves_several_callers(runtime, eager_switching):
    pipe = stable_diffusion()
    release()
    method = "anderson" if runtime == "eager" else "ddim"
    found = together(*(partial(there_and_back, pipe, j, runtime, method) for j in range(THREADS)))
    for j, each in enumerate(found):
        assert same(each, there_and_back(pipe, j, runtime, method))


FIRST = """
import sys
from functools import partial
import torch
from invfast import demo, invert, reconstruct
from invfast.runtimes import RUNTIMES, openvino
sys.path.insert(0, "tests")
from together import together

print(together(*[RUNTIMES["openvino"].unavailable] * 4))
print(len({id(core) for core in together(*[openvino._core] * 4)}), "openvino_telemetry" in sys.modules)
texts = ["noto peach", "", "photo cat photo cat", "noto apple"]

def there_and_back(j):
    pipe, x = demo.load_pipeline(), torch.full((1, 4, 16, 16), j / 4)
    found = invert(pipe, x, texts[j], method="anderson", num_inference_steps=2)
    return found.latents, reconstruct(pipe, found, output_type="pt").images

found = together(*(partial(there_and_back, j) for j in range(4)))
print([torch.equal(a, b) for j in range(4) for a, b in zip(found[j], there_and_back(j))])
"""


@pytest.mark.slow
def test_first_calls_of_a_process():
    """Imports, operators, loading: all that happens once, in four threads that each bring a pipeline."""
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", FIRST], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str([None] * 4), "1 False", str([True] * 8)]


# What each runtime can use for one call at a time


@pytest.mark.parametrize("runtime", ["openvino", pytest.param("onnxruntime", marks=pytest.mark.timeout(900))])
def test_a_prepared_network_serves_several_callers(runtime):
    """Rows beyond its batch, too: OpenVINO's takes them in groups."""
    module, draw = stable_diffusion().unet.eval(), partial(torch.randn, generator=torch.Generator().manual_seed(0))
    inputs = [
        {"x": draw(3, 4, 8, 8), "t": torch.tensor(200 * j), "encoder_hidden_states": draw(3, 12, 32)}
        for j in range(THREADS)
    ]
    network = ready(runtime, module, inputs[0])
    wanted = [network(**each) for each in inputs]

    def calls(j):
        return [network(**inputs[j]) for _ in range(25)]

    found = together(*(partial(calls, j) for j in range(THREADS)))
    assert sum(not torch.equal(x, wanted[j]) for j in range(THREADS) for x in found[j]) == 0


class Scaled(torch.nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.full((4,), factor), requires_grad=False)

    def forward(self, x, t, return_dict=False):
        return (x * self.factor + t,)


@pytest.mark.skipif(RUNTIMES["compile"].unavailable() is not None, reason="torch.compile cannot run here")
def test_first_calls_of_compiled_networks():
    release()
    torch._dynamo.utils.counters.clear()
    modules, x, t = [Scaled(0.5), Scaled(1.5)], torch.linspace(0, 1, 4).reshape(1, 4), torch.tensor(1)

    def call(j):
        spec = Spec(CPU, torch.float32, lambda: f"scaled {j % 2}")
        network = runtimes.prepared(RUNTIMES["compile"], lambda: modules[j % 2], {"x": x, "t": t}, spec)
        return [network(x + k, t) for k in range(20)]

    found = together(*(partial(call, j) for j in range(THREADS)))
    for j in range(THREADS):
        assert same(found[j], [modules[j % 2](x + k, t)[0] for k in range(20)])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
    release()


# Graphs that are kept


@pytest.fixture
def graphs(monkeypatch):
    """Pipelines on the CPU captured through a stand-in."""
    monkeypatch.setattr(run, "cuda_graphs", lambda device: Recorder())
    monkeypatch.setattr(Denoiser, "uncapturable", None)
    release()
    yield
    release()


def test_graphs_are_one_runs_at_a_time(graphs):
    pipe = stable_diffusion()

    def runs():
        return [there_and_back(pipe, j, method="ddim")[0] for j in range(2)]

    wanted = runs()
    for found in together(runs, runs):
        assert same(found, wanted)


def test_counts_are_read_before_the_graphs_are_anothers(graphs, monkeypatch):
    pipe = stable_diffusion()

    def run_of(j, **options):
        method = FixedPoint(6, "anderson", tolerance=3e-3)
        return invert(pipe, noise(j) * (1 + 3 * j), method=method, num_inference_steps=3, runtime="eager", **options)

    wanted = run_of(0).stats
    assert wanted.evaluations != run_of(1).stats.evaluations
    real, others = Store.lend, []

    @contextmanager
    def lend(self, key, make):
        with real(self, key, make) as held:
            yield held
        if not others:
            others.append(None)
            together(lambda: run_of(1))

    monkeypatch.setattr(Store, "lend", lend)
    found = run_of(0).stats
    assert (found.evaluations, found.samples) == (wanted.evaluations, wanted.samples)
