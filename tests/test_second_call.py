"""What a call costs beside its network from the second on: nothing is copied, converted or walked over again."""

import copy
import gc
import weakref

import pytest
import torch
from test_capture import graphs  # noqa: F401
from tiny import stable_diffusion

from invfast import digests, invert, methods, reconstruct, release
from invfast.denoiser import clone, reading
from invfast.methods import DDIM, Direct, FixedPoint
from invfast.store import READY

SETTINGS = {"num_inference_steps": 4, "runtime": "eager"}


@pytest.fixture
def counted(monkeypatch):
    """How often each of what a first call does was done."""
    counts = dict.fromkeys(("outlines", "copies", "conversions", "checksums", "walks"), 0)

    def counting(name, function):
        def call(*given, **named):
            counts[name] += 1
            return function(*given, **named)

        return call

    monkeypatch.setattr(reading, "outline", counting("outlines", reading.outline))
    monkeypatch.setattr(copy, "deepcopy", counting("copies", copy.deepcopy))
    monkeypatch.setattr(clone, "_convert", counting("conversions", clone._convert))
    monkeypatch.setattr(digests, "_parts", counting("checksums", digests._parts))
    monkeypatch.setattr(torch.nn.Module, "named_modules", walking(counts, torch.nn.Module.named_modules))
    release()
    yield counts
    release()


def walking(counts, real):
    """Walks over whole networks: over the UNet or the VAE itself, not over their parts."""

    def named_modules(self, memo=None, prefix="", remove_duplicate=True):
        counts["walks"] += memo is None and type(self).__name__ in ("UNet2DConditionModel", "AutoencoderKL")
        return real(self, memo, prefix, remove_duplicate)

    return named_modules


@pytest.mark.parametrize("name", [name for name, each in methods.METHODS.items() if not each.flow_only])
def test_a_second_call_reads_the_pipeline_and_makes_nothing(name, counted, peach):
    pipe = stable_diffusion()
    invert(pipe, peach, method=name, **SETTINGS)
    assert all(counted.values()), counted  # a first call does all of it, and is seen to
    counted.update(dict.fromkeys(counted, 0))
    inversion = invert(pipe, peach, method=name, **SETTINGS)
    assert (counted["outlines"], counted["copies"], counted["conversions"]) == (0, 0, 0)
    assert counted["checksums"] == 1  # the network's and the VAE's together
    assert counted["walks"] == 0
    for _ in range(2):
        counted.update(dict.fromkeys(counted, 0))
        reconstruct(pipe, inversion, runtime="eager")
    assert (counted["outlines"], counted["copies"], counted["conversions"]) == (0, 0, 0)
    assert (counted["checksums"], counted["walks"]) == (1, 0)


def merged(pipe):
    pipe.unet.conv_out.weight.data.mul_(1.01)  # behind every version counter


def moved(pipe):
    pipe.unet.to(torch.float64).to(torch.float32)


def switched(pipe):
    pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)


def replaced(pipe):
    pipe.unet.mid_block.resnets[0].nonlinearity = torch.nn.GELU()


def rebound(pipe):
    pipe.unet.conv_in.weight = torch.nn.Parameter(pipe.unet.conv_in.weight.detach() * 1.01)


def halved(pipe):
    for part in pipe.unet.modules():
        if isinstance(part, torch.nn.Linear):
            part.weight.data = part.weight.data * 0.99


def of_the_vae(pipe):
    pipe.vae.encoder.conv_in.weight.data.mul_(1.1)


class Louder(torch.nn.SiLU):
    def forward(self, x):
        return 1.5 * super().forward(x)


def of_another_class(pipe):
    block = pipe.unet.mid_block.resnets[0]
    block.nonlinearity = torch.nn.SiLU()  # its own: blocks of diffusers share one
    block.nonlinearity.__class__ = Louder


CHANGES = [merged, moved, switched, replaced, rebound, halved, of_the_vae, of_another_class]


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_pipeline_is_read_as_it_is(change, counted, peach):
    pipe, fresh = stable_diffusion(), stable_diffusion()
    first = invert(pipe, peach, **SETTINGS).latents
    change(pipe)
    change(fresh)
    found = invert(pipe, peach, **SETTINGS)
    assert torch.equal(found.latents, invert(fresh, peach, **SETTINGS).latents)
    assert torch.equal(found.latents, first) == (change is moved)


def test_a_loras_scale_that_changes_in_place(counted, peach):
    from peft import LoraConfig

    pipe = stable_diffusion()
    pipe.unet.add_adapter(LoraConfig(r=4, target_modules=["to_q", "to_v"], init_lora_weights=False))
    found = []
    for scale in (1.0, 0.5, 1.0):
        for part in pipe.unet.modules():
            if isinstance(getattr(part, "scaling", None), dict):
                part.scaling["default"] = scale
        found.append(invert(pipe, peach, **SETTINGS).latents)
    assert torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[1])


class Grown(torch.nn.SiLU):
    """Adds what it finds of its own."""

    def forward(self, x):
        return (
            super().forward(x) + sum(each.weight.mean() for each in self.children()) + sum(map(torch.mean, self.more))
        )


@pytest.mark.parametrize("way", ["a part", "a tensor in a list"])
def test_a_part_that_takes_something_up(way, counted, peach):
    pipe, found = stable_diffusion(), []
    act = pipe.unet.mid_block.resnets[0].nonlinearity = Grown()
    act.more = [torch.zeros(1)]
    for _ in range(2):
        found.append(invert(pipe, peach, **SETTINGS).latents)
        if way == "a part":
            act.inner = torch.nn.Linear(1, 1)
        else:
            act.more[0] = torch.ones(1)
    assert not torch.equal(*found)


class Odd:
    """A caller's object in a module: nothing says what is in it."""

    def __init__(self, gain):
        self.gain = gain


class Scaled(torch.nn.SiLU):
    def forward(self, x):
        return super().forward(x) * self.odd.gain


def test_what_words_do_not_hold_is_copied_each_time(counted, peach):
    pipe = stable_diffusion()
    block = pipe.unet.mid_block.resnets[0]
    block.nonlinearity = Scaled()
    block.nonlinearity.odd = Odd(1.0)
    before = invert(pipe, peach, **SETTINGS).latents
    block.nonlinearity.odd.gain = 0.5
    counted.update(dict.fromkeys(counted, 0))
    assert not torch.equal(invert(pipe, peach, **SETTINGS).latents, before)
    assert counted["copies"] > 0


def test_weights_of_the_caller_keep_their_layout(counted, peach):
    for layout in (torch.contiguous_format, torch.channels_last):
        pipe = stable_diffusion()
        pipe.unet.to(memory_format=layout)
        before = [(p.data_ptr(), p.stride()) for p in pipe.unet.parameters()]
        for _ in range(2):
            invert(pipe, peach, **SETTINGS)
        assert [(p.data_ptr(), p.stride()) for p in pipe.unet.parameters()] == before


def test_channels_last_weights_are_the_callers_own(counted, peach):
    pipe = stable_diffusion()
    pipe.unet.to(memory_format=torch.channels_last)
    invert(pipe, peach, **SETTINGS, precompute=())
    sizes = {key[0]: entry.size for key, entry in READY._entries.items() if key[0] == "network"}
    assert sizes == {"network": 0}


SLOWER = [
    pytest.param(each, marks=pytest.mark.slow) for each in ("auto", "warm_start", "obelm", "edict", "negative_prompt")
]


@pytest.mark.parametrize("method", ["ddim", Direct(3.0), *SLOWER])
def test_three_sizes_in_rotation_are_recorded_once(method, graphs):  # noqa: F811
    pipe = stable_diffusion()
    sizes = [torch.full((1, 4, h, 8), 0.5) for h in (8, 12, 16)]
    for j in range(3):
        before = len(graphs)
        for x in sizes:
            assert invert(pipe, x, method=method, num_inference_steps=6, runtime="eager").stats.cuda_graph
        assert (len(graphs) > before) == (j == 0)


@pytest.mark.parametrize("method", [DDIM(), FixedPoint(9, "anderson", "linear", tolerance=1e-2), "auto"])
def test_samples_are_what_ran_and_what_was_needed(method, graphs):  # noqa: F811
    pipe, x = stable_diffusion(), torch.full((1, 4, 8, 8), 0.5)
    plain = invert(pipe, x, method=method, cuda_graph=False, **SETTINGS).stats
    for _ in range(2):
        found = invert(pipe, x, method=method, **SETTINGS).stats
        assert found.cuda_graph
        assert (found.samples, found.evaluations) == (plain.samples, plain.evaluations)
        assert found.samples == sum(found.evaluations)


def test_another_numeric_flag_is_another_graph(graphs):  # noqa: F811
    pipe, x = stable_diffusion(), torch.full((1, 4, 8, 8), 0.5)
    invert(pipe, x, **SETTINGS)
    before, own = len(graphs), torch.backends.mkldnn.matmul.fp32_precision
    try:
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"
        invert(pipe, x, **SETTINGS)
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = own
    assert len(graphs) > before
    before = len(graphs)
    invert(pipe, x, **SETTINGS)
    assert len(graphs) == before


@pytest.mark.parametrize("captured", [False, True])
def test_a_pipeline_goes_with_its_last_user(captured, graphs, monkeypatch):  # noqa: F811
    if not captured:
        monkeypatch.undo()
    pipe, x = stable_diffusion(), torch.full((1, 4, 8, 8), 0.5)
    for method in ("ddim", "auto", "null_text"):
        found = invert(pipe, x, method=method, **SETTINGS)
        reconstruct(pipe, found, runtime="eager")
    assert found.stats.cuda_graph == captured
    assert READY.contents()
    there = [weakref.ref(each) for each in (pipe, pipe.unet, pipe.vae, pipe.unet.conv_in.weight)]
    del pipe
    gc.collect()
    assert [each() for each in there] == [None] * 4
    assert not READY.contents()
