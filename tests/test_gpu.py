"""What only a GPU can show: kernels on the device, captured steps, launches; `benchmarks/gpu.sh` runs them all."""

from functools import partial

import pytest
import torch
from exact import as_exact_as_eager, steps_as_exact_as_eagers
from test_methods import TWINS, schedule
from toy import distance, noise_for, predictor

from invfast import demo, invert, ops, reconstruct
from invfast.executors import Captured, Plain, cuda_graphs
from invfast.integrate import Hooks, integrate
from invfast.methods import FixedPoint, Problem

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
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        invert(pipe, image, prompt, method="ddim")
    counts = {event.key: event.count for event in profile.key_averages()}
    assert counts.get("cudaGraphLaunch", 0) == 50
