"""What only a GPU can show: kernels on the device, captured steps, launches; `benchmarks/gpu.sh` runs them all."""

import warnings
from contextlib import contextmanager
from functools import partial

import pytest
import torch
from exact import as_exact_as_eager, steps_as_exact_as_eagers
from test_methods import TWINS, schedule
from together import together
from toy import distance, noise_for, predictor

from invfast import demo, invert, ops, reconstruct, release
from invfast.digests import checksums
from invfast.executors import Captured, Plain, cuda_graphs
from invfast.integrate import Hooks, integrate
from invfast.methods import FixedPoint, Problem
from invfast.methods.base import Linear
from invfast.store import READY

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")

SIZES = [1, 3, 63, 129, 4095, 65537]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def network(x, t, **_):
    return 0.5 * x + 0.4 * torch.sin(2 * x + t / 200)


@pytest.fixture(params=["cpp", "triton", "reference"])
def kernels(request):
    why = ops.unavailable(request.param, "cuda")
    if why:
        pytest.skip(why)
    return ops.resolve("cuda", request.param)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_kernels_against_float64_on_the_cpu(kernels, dtype, size):
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    near = 1e-13 if dtype == torch.float64 else 2e-6
    for batch in (1, 2, 5):
        inputs = [torch.randn(batch, size).to(dtype) for _ in range(4)]
        table = torch.randn(5, 2, 4, dtype=wide)
        index = torch.randint(0, 5, (batch,))
        wanted = ops.lincomb_residual([x.double() for x in inputs], table.double(), index, inputs[1].double())
        device = [x.cuda() for x in inputs], table.cuda(), index.cuda()
        got = kernels.lincomb_residual(*device, inputs[1].cuda())
        alone = kernels.lincomb(*device)
        *outputs, sums = got
        assert distance(sums.cpu(), wanted[-1]) < 10 * near
        # Four products and three sums, in any order, fused or not; in float64 what is wanted is rounded as well.
        sizes = ops.lincomb([x.double().abs() for x in inputs], table.double().abs(), index)
        for a, b, size in zip(wanted, outputs, sizes, strict=False):
            assert ((b.cpu().double() - a).abs() <= 4 * torch.finfo(wide).eps * size).all()
        for a, b in zip(got, alone, strict=False):
            assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_outputs_do_not_depend_on_the_implementation(dtype, size):
    """Products are fused in one order; sums over a sample are added in an order of each one's own."""
    for name in ("cpp", "triton"):
        if why := ops.unavailable(name, "cuda"):
            pytest.skip(why)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for k in range(1, 5):
        inputs = [torch.randn(3, size).to("cuda", dtype) for _ in range(k)]
        table, index = torch.randn(5, 2, k, dtype=wide, device="cuda"), torch.tensor([4, 0, 2], device="cuda")
        found = []
        for each in (ops.resolve("cuda", "cpp"), ops.resolve("cuda", "triton")):
            found += [each.lincomb(inputs, table, index), each.lincomb_residual(inputs, table, index, inputs[0])[:2]]
        assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


def test_anderson_on_the_device(kernels):
    f, r = torch.randn(2, 3, 5, 4, 33, 31)
    r[:, 1] = r[2, 1]
    r[2, 3] = 0
    r[0, 4, 0] = f[0, 4, 0] = torch.nan
    got = kernels.anderson_mix(list(f.cuda()), list(r.cuda()))
    assert distance(got.cpu(), ops.anderson_mix(list(f), list(r))) < 1e-4


@pytest.mark.parametrize("name", TWINS)
def test_captured_steps_are_plain_ones(kernels, name, x0):
    grid, found = schedule(), []
    for dtype, captured in ((torch.float32, True), (torch.float32, False), (torch.float64, False)):
        x, draw = x0.to("cuda", dtype), lambda shape, seed, dtype=dtype: noise_for(shape, seed).to("cuda", dtype)
        stepper = TWINS[name][0].inverter(Problem(grid, 1.0, "cuda", dtype, draw, kernels))
        predict = predictor(len(x), dtype, dynamic_batch=False, function=network)
        device = torch.device("cuda", torch.cuda.current_device())
        take = Captured(stepper, predict, grid, device, cuda_graphs(device)) if captured else Plain(stepper, predict)
        found.append(integrate(take, {"latents": x}, grid, Hooks()).state["latents"])
    as_exact_as_eager(*found)


def captured_and_plain(pipe, name, **options):
    """An inversion with its steps captured, held to the plain one's exactness; the two."""
    calls = (partial(invert, pipe, *demo.load_images()[name], **options, cuda_graph=graph) for graph in (None, False))
    captured, plain, _ = steps_as_exact_as_eagers(*calls)
    return captured, plain


def test_the_bundled_model_there_and_back():
    pipe = demo.load_pipeline().to("cuda")
    captured, plain = captured_and_plain(pipe, "peach", method=FixedPoint(3, "anderson", "linear"))
    assert captured.stats.cuda_graph
    assert not plain.stats.cuda_graph
    assert distance(reconstruct(pipe, captured, output_type="latent").latents, captured.init_latents) < 1e-2


def test_kept_graphs_serve_another_image_and_prompt():
    pipe = demo.load_pipeline().to("cuda")
    for name in ("peach", "coffee"):
        captured_and_plain(pipe, name, method="anderson")


def test_a_captured_step_is_one_launch_and_no_wait():
    pipe = demo.load_pipeline().to("cuda")
    image, prompt = demo.load_images()["peach"]
    invert(pipe, image, prompt, method="ddim")
    both = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=both) as profile:
        invert(pipe, image, prompt, method="ddim")
    counts = {event.key: event.count for event in profile.key_averages()}
    assert counts.get("cudaGraphLaunch", 0) == 50
    assert counts.get("cudaDeviceSynchronize", 0) <= 1  # the profiler's own


@contextmanager
def waits():
    """Counts what makes the host wait for the device, as torch sees it."""
    found = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode("default")
    found += [str(each.message) for each in caught if "synchronizing CUDA operation" in str(each.message)]


def test_a_second_call_waits_three_times_outside_its_loop_and_once_at_its_end():
    pipe, x = demo.load_pipeline().to("cuda"), torch.randn(1, 4, 16, 16, device="cuda")
    for _ in range(2):
        with waits() as found:
            invert(pipe, x, "noto peach", method="ddim")
    assert len(found) <= 4


def test_a_step_that_residuals_end_waits_once_an_evaluation_and_wastes_none():
    pipe, x = demo.load_pipeline().to("cuda"), torch.randn(1, 4, 16, 16, device="cuda")
    for _ in range(2):
        with waits() as found:
            stats = invert(pipe, x, "noto peach", method="auto").stats
        assert stats.samples == stats.evaluations[0]
    assert len(found) <= stats.evaluations[0] + 4


def test_overlapping_calls_record_and_replay_their_own():
    pipes = [demo.load_pipeline().to("cuda") for _ in range(2)]
    images = demo.load_images()

    def runs(j):
        return [
            invert(pipes[(j + k) % 2], *images[name], method="ddim", num_inference_steps=10).latents
            for k, name in enumerate(("peach", "coffee", "cat"))
        ]

    wanted = [runs(0), runs(1)]
    release()
    for found, each in zip(together(partial(runs, 0), partial(runs, 1)), wanted, strict=True):
        assert all(distance(a, b) < 1e-5 for a, b in zip(found, each, strict=True))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device here")
def test_a_pipeline_on_another_device():
    pipe = demo.load_pipeline().to("cuda:1")
    captured, plain = captured_and_plain(pipe, "peach", method="anderson")
    assert captured.stats.cuda_graph
    assert captured.latents.device == plain.latents.device == torch.device("cuda", 1)


def test_a_capture_that_fails_is_an_error_and_later_calls_go_on(monkeypatch):
    pipe, x = demo.load_pipeline().to("cuda"), torch.randn(1, 4, 16, 16, device="cuda")
    real, reading = Linear.step, []

    def step(self, *given):
        if reading:
            float(given[1]["latents"].sum())  # reads the device
        return real(self, *given)

    release()
    monkeypatch.setattr(Linear, "step", step)
    reading.append(True)
    with pytest.raises(RuntimeError, match="pass cuda_graph=False"):
        invert(pipe, x, method="ddim")
    reading.clear()
    assert invert(pipe, x, method="ddim").stats.cuda_graph


def test_three_sizes_in_rotation_are_recorded_once():
    pipe = demo.load_pipeline().to("cuda")
    sizes = [torch.randn(1, 4, h, 16, device="cuda") for h in (16, 24, 32)]
    release()
    for _ in range(3):
        for x in sizes:
            invert(pipe, x, method="ddim", num_inference_steps=10)
    kept = [key for key in READY.contents() if key[0] == "graphs"]
    assert len(kept) == 3


def test_weights_are_channels_last_and_the_callers_stay():
    pipe, x = demo.load_pipeline().to("cuda"), torch.randn(1, 4, 16, 16, device="cuda")
    before = [(p.data_ptr(), p.stride()) for p in pipe.unet.parameters()]
    invert(pipe, x, method="ddim", num_inference_steps=4)
    assert [(p.data_ptr(), p.stride()) for p in pipe.unet.parameters()] == before
    pipe.unet.to(memory_format=torch.channels_last)
    release()
    invert(pipe, x, method="ddim", num_inference_steps=4, precompute=())
    assert [entry.size for key, entry in READY._entries.items() if key[0] == "network"] == [0]


def test_checksums_do_not_know_the_device():
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(n, generator=generator) for n in (1, 3, 1023, 32768, 32769, 200001, 5_000_000)]
    assert checksums([x.cuda() for x in tensors]) == checksums(tensors)


@pytest.mark.parametrize("method", ["null_text", "prompt_tuning"])
def test_the_iterations_of_null_text_are_graphs(method, peach):
    pipe = demo.load_pipeline().to("cuda")
    plain, captured = (
        invert(pipe, peach, prompt="a peach", method=method, num_inference_steps=6, cuda_graph=graphs)
        for graphs in (False, None)
    )
    assert captured.stats.evaluations == plain.stats.evaluations
    for name, value in plain.state.items():
        assert distance(captured.state[name].cpu(), value.cpu()) < 1e-3, name
