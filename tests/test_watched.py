"""Python of the caller's that looks on: hooks and processors see whole batches, tensors handed out are ordinary."""

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from test_capture import graphs  # noqa: F401 (a fixture)
from tiny import QUICK, stable_diffusion
from torch.nn.modules.module import register_module_forward_hook

from invfast import Inversion, invert, reconstruct
from invfast.denoiser.conditioned import EMBEDS, Conditioned
from invfast.methods import FixedPoint, ForwardStart, NoiseMaps, NullText, PromptTuning

UNEVEN = FixedPoint(5, "anderson", tolerance=1e-2)
"""Of `three` the images end their steps at different iterations."""


@pytest.fixture(scope="module")
def three():
    x = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    return x * torch.tensor([1e-2, 1.0, 3.0]).reshape(3, 1, 1, 1)


class Store:
    """A processor that notes the batch, as attention stores do."""

    def __init__(self, seen):
        self.inner, self.seen = AttnProcessor2_0(), seen

    def __call__(self, attn, hidden_states, *args, **kwargs):
        self.seen.append(hidden_states)
        return self.inner(attn, hidden_states, *args, **kwargs)


def hooked(pipe, seen):
    pipe.unet.mid_block.register_forward_hook(lambda module, args, out: seen.append(out))


def pre_hooked(pipe, seen):
    pipe.unet.conv_in.register_forward_pre_hook(lambda module, args: seen.append(args[0]))


def processed(pipe, seen):
    pipe.unet.set_attn_processor(Store(seen))


def one_processor(pipe, seen):
    pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn2.set_processor(Store(seen))


def patched(pipe, seen):
    block = pipe.unet.mid_block
    forward = block.forward

    def watching(*args, **kwargs):
        seen.append(args[0])
        return forward(*args, **kwargs)

    block.forward = watching


def everywhere(pipe, seen):
    """One hook for all modules of torch; the caller takes it away again."""
    return register_module_forward_hook(
        lambda module, args, out: seen.append(out) if type(module).__name__.startswith("UNetMid") else None
    )


WAYS = [hooked, pre_hooked, processed, one_processor, patched, everywhere]


def watched(way, x, **settings):
    """(inversion, what was seen) of a pipeline looked into in one of the ways."""
    pipe, seen = stable_diffusion(steep=True), []
    handle = way(pipe, seen)
    try:
        return invert(pipe, x, **{"num_inference_steps": 3, **settings}), seen
    finally:
        if handle is not None:
            handle.remove()


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_every_image_is_seen_at_every_evaluation(way, three):
    inversion, seen = watched(way, three, method=UNEVEN)
    assert len(set(inversion.stats.evaluations)) > 1
    assert {len(each) for each in seen} == {3}
    layers = len(stable_diffusion().unet.attn_processors) if way is processed else 1
    assert inversion.stats.samples == 3 * len(seen) // layers
    assert inversion.stats.samples > sum(inversion.stats.evaluations)


def test_nobody_looking_images_that_are_done_are_left_out(three):
    stats = invert(stable_diffusion(), three, method=UNEVEN, runtime="eager", **QUICK).stats
    assert len(set(stats.evaluations)) > 1
    assert stats.samples == sum(stats.evaluations)


@pytest.mark.filterwarnings("ignore:inverting at guidance_scale")
@pytest.mark.parametrize("way", [hooked, processed], ids=lambda way: way.__name__)
def test_both_branches_of_every_image_are_seen(way, three):
    _, seen = watched(way, three, method=UNEVEN, guidance_scale=3.0)
    assert {len(each) for each in seen} == {6}


@pytest.mark.parametrize("way", [hooked, processed], ids=lambda way: way.__name__)
@pytest.mark.parametrize("method", [ForwardStart(1, UNEVEN), NoiseMaps()], ids=lambda m: type(m).__name__)
def test_neither_other_methods_nor_batches_of_times_change_the_batch(method, way, three):
    _, seen = watched(way, three, method=method)
    assert {len(each) for each in seen} == {3}


@pytest.mark.parametrize("method", [NullText, PromptTuning])
def test_tuning_asks_one_branch_of_every_image(method, three):
    made = method(3.0, iterations=3, tolerance=0.1)
    inversion, seen = watched(hooked, three, method=made)
    assert len(set(inversion.stats.evaluations)) > 1
    assert {len(each) for each in seen} == {3}


@pytest.mark.parametrize("gradient", [False, True])
def test_a_branch_of_some_images_is_the_same_masked_or_alone(gradient):
    generator = torch.Generator().manual_seed(1)
    x, embeds = torch.randn(3, 4, 2, 2, generator=generator), torch.randn(3, 2, 5, generator=generator)

    def network(x, t, encoder_hidden_states, other):
        rows.append(len(x))
        return x * encoder_hidden_states.sin().mean((1, 2)).reshape(-1, 1, 1, 1) + other

    found, rows = [], []
    for dynamic in (True, False):
        static = {EMBEDS: embeds.repeat(2, 1, 1), "other": torch.arange(6.0).reshape(6, 1, 1, 1)}
        predict = Conditioned(network, static, 3, 2, torch.float32, dynamic)
        output, pullback = predict.branch(1, x, torch.tensor(1.0), embeds, [0, 2], gradient)
        found.append((output, pullback(torch.ones_like(output)) if gradient else output, predict.evaluations))
    assert rows == [2, 3]
    assert found[0][2] == found[1][2] == [1, 0, 1]
    for one, other in zip(found[0][:2], found[1][:2], strict=True):
        assert one.shape == other.shape
        assert len(one) == 3
        assert torch.equal(one[[0, 2]], other[[0, 2]])


@pytest.mark.parametrize("way", [hooked, processed, patched, everywhere], ids=lambda way: way.__name__)
def test_what_they_see_can_be_differentiated_further(way, three):
    _, seen = watched(way, three, method="ddim")
    for each in seen:
        assert not each.is_inference()
        assert not each.requires_grad
    kept = seen[0].requires_grad_()
    (kept * kept).sum().backward()
    assert kept.grad.shape == kept.shape


def call(captured, callback, names=("latents",), method="ddim", x=None, **settings):
    x = torch.zeros(2, 4, 8, 8) + 0.5 if x is None else x
    settings = {"num_inference_steps": 5, "runtime": "eager", "cuda_graph": None if captured else False, **settings}
    return invert(
        stable_diffusion(),
        x,
        method=method,
        callback_on_step_end=callback,
        callback_on_step_end_tensor_inputs=names,
        **settings,
    )


EDITS = {
    "in place": lambda x: x["latents"].mul_(1.1),
    "through a view": lambda x: x["latents"][:, 1:3].add_(0.1),
    "of the data": lambda x: x["latents"].data.mul_(1.1),
    "in place, all returned": lambda x: (x["latents"].mul_(1.1), x)[1],
    "returned": lambda x: {"latents": x["latents"] * 1.1},
    "by a gradient": lambda x: {"latents": x["latents"] - 0.1 * slope(x["latents"])},
}


def slope(x):
    x = x.detach().requires_grad_()
    return torch.autograd.grad(x.sin().square().sum(), x)[0]


@pytest.fixture(scope="module")
def unedited():
    return call(False, None, method="warm_start").latents


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_means_the_same_captured_or_not(edit, unedited, graphs):  # noqa: F811
    """And it counts, as in diffusers' own pipelines, whether it is returned or made in place."""

    def callback(pipe, step, t, tensors):
        found = EDITS[edit](tensors)
        return found if isinstance(found, dict) else None

    plain, captured = (call(each, callback, method="warm_start") for each in (False, True))
    assert captured.stats.cuda_graph
    assert torch.equal(plain.latents, captured.latents)
    assert not torch.equal(plain.latents, unedited)


@pytest.mark.parametrize("captured", [False, True])
def test_only_what_was_named_is_handed_out_and_stays_the_callers(captured, graphs):  # noqa: F811
    kept, method = [], ForwardStart(1, FixedPoint(2, "anderson", "linear"))

    def callback(pipe, step, t, tensors):
        assert sorted(tensors) == ["noise", "noise_1"]
        for each in kept:  # what it saw before is its own: nobody looks at it any more
            each.fill_(100.0)
        kept.extend(tensors.values())

    found = call(captured, callback, ("noise", "noise_1"), method)
    assert torch.equal(found.latents, call(captured, lambda *given: None, ("latents",), method).latents)
    assert len({each.untyped_storage().data_ptr() for each in kept}) == len(kept)


@pytest.mark.parametrize("captured", [False, True])
def test_a_buffer_that_is_returned_again_and_again_is_copied(captured, graphs):  # noqa: F811
    buffer, method = torch.zeros(2, 4, 8, 8), ForwardStart(1)

    def callback(pipe, step, t, tensors):
        buffer.fill_(step)
        return {"noise": buffer} if step == 0 else None

    found = call(captured, callback, ("latents",), method)
    assert torch.equal(found.state["noise"], torch.zeros(2, 4, 8, 8))


AROUND = {"nothing": torch.enable_grad, "inference_mode": torch.inference_mode, "no_grad": torch.no_grad}


@pytest.mark.parametrize(
    ("around", "captured"), [("nothing", False), ("nothing", True), ("inference_mode", False), ("no_grad", True)]
)
def test_callbacks_run_outside_inference_mode(around, captured, graphs):  # noqa: F811
    seen = []

    def callback(pipe, step, t, tensors):
        x = tensors["latents"]
        assert not torch.is_inference_mode_enabled()
        assert not x.is_inference()
        assert torch.is_grad_enabled() == (around != "no_grad")
        with torch.enable_grad():
            y = x.requires_grad_()
            (y * y).sum().backward()
        seen.append(y.grad)
        return {"latents": y - 0.01 * y.grad}

    with AROUND[around]():
        found = call(captured, callback)
        assert torch.is_inference_mode_enabled() == (around == "inference_mode")
    assert len(seen) == 5
    assert not found.latents.requires_grad


@pytest.mark.parametrize(
    ("error", "around", "captured"),
    [
        (RuntimeError, "nothing", False),
        (RuntimeError, "inference_mode", True),
        (KeyboardInterrupt, "no_grad", True),
    ],
)
def test_what_a_callback_raises_leaves_modes_and_later_calls_alone(error, around, captured, graphs):  # noqa: F811
    def fails(pipe, step, t, tensors):
        tensors["latents"].requires_grad_()
        raise error("mine")

    with AROUND[around]():
        before = torch.is_inference_mode_enabled(), torch.is_grad_enabled()
        with pytest.raises(error, match="mine"):
            call(captured, fails)
        assert (torch.is_inference_mode_enabled(), torch.is_grad_enabled()) == before
    assert torch.equal(call(captured, None).latents, call(False, None).latents)


def test_what_a_run_returns_is_ordinary(tmp_path):
    pipe, x = stable_diffusion(), torch.zeros(2, 4, 8, 8) + 0.5
    with torch.inference_mode():
        found = invert(pipe, x, method=ForwardStart(1, FixedPoint(2)), save_trajectory=True, **QUICK)
        tuned = invert(pipe, x, method=NullText(3.0, iterations=1), num_inference_steps=2)
        images = [reconstruct(pipe, found, output_type=kind) for kind in ("pt", "latent")]
        found.save(tmp_path / "a")
    assert_ordinary(found, tuned, Inversion.load(tmp_path / "a"), *images)
    with torch.inference_mode():
        loaded = Inversion.load(tmp_path / "a")
    assert_ordinary(loaded, loaded[1])


def assert_ordinary(*results):
    for each in results:
        values = {**vars(each), **getattr(each, "state", {}), "residual": each.stats.residual}
        for name, value in values.items():
            if isinstance(value, torch.Tensor):
                assert not value.is_inference(), name
                value.add_(0)
                leaf = value.detach().clone().requires_grad_()
                (value * leaf).sum().backward()


def test_a_loop_by_itself_returns_ordinary_tensors_within_inference_mode(x0):
    from test_methods import schedule
    from toy import run

    with torch.inference_mode():
        found = run(FixedPoint(2), schedule(3), x0, trajectory=True)
    for value in (*found.state.values(), found.trajectory, found.residual):
        assert not value.is_inference()
