"""Between two inversions: the ends are the reconstructions, whatever the method keeps; and what is no pair."""

import dataclasses
import math
import warnings

import pytest
import torch
from families import FAMILIES
from hypothesis import given, settings
from hypothesis import strategies as st
from test_capture import graphs  # noqa: F401 (a fixture)
from tiny import QUICK, stable_diffusion, stable_diffusion_xl
from tiny_transformers import qwen_image, stable_diffusion_3, z_image
from toy import distance

from invfast import Inversion, interpolate, invert, reconstruct, run
from invfast.interpolation import WAYS, Between, slerp
from invfast.methods import DDIM, METHODS, Method, NullText, Problem
from invfast.methods.flow import FlowMethod
from invfast.reconstruction import Reconstruction

QUICKLY = (
    "Stable Diffusion XL (Turbo, Lightning)",
    "Stable Diffusion with an IP-Adapter",
    "Stable Diffusion with a ControlNet",
    "Pixel space, classes and learned variance (ADM)",
    "FLUX.1 (dev, schnell)",
    "Qwen-Image",
)
"""One for each kind of what a network is told."""


def noise(seed, *shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.fixture(scope="module")
def flow():
    return stable_diffusion_3()


def pair(pipe, method="ddim", prompts=("a peach", "a cat"), **options):
    """Two inversions by one call."""
    channels = 16 if hasattr(pipe, "transformer") else 4
    given = {"num_inference_steps": 2, "runtime": "eager", "method": method, **options}
    said = None if "prompt_embeds" in options else list(prompts)
    both = invert(pipe, noise(1, len(prompts), channels, 8, 8), said, **given)
    return [both[j] for j in range(len(prompts))]


def back(pipe, inversion, **options):
    return reconstruct(pipe, inversion, output_type="latent", **options).latents


def between(pipe, a, b, n=3, **options):
    return interpolate(pipe, a, b, n, output_type="latent", **options).latents


@pytest.fixture
def runs(monkeypatch):
    """What each pass over the grid was given: (state, condition)."""
    seen, own = [], run.run

    def spy(model, problem, stepper, state, condition, *more):
        seen.append((state, condition))
        return own(model, problem, stepper, state, condition, *more)

    monkeypatch.setattr(run, "run", spy)
    return seen


# The arc


@given(st.integers(0, 2**31), st.sampled_from([torch.float32, torch.float64]), st.integers(2, 9))
@settings(max_examples=25)
def test_arcs(seed, dtype, n):
    a, b = noise(seed, 3, 5, dtype=dtype), noise(seed + 1, 3, 5, dtype=dtype)
    lambdas = torch.linspace(0, 1, n, dtype=torch.float64)
    found = slerp(a, b, lambdas)
    assert torch.equal(found[0], a)
    assert torch.equal(found[-1], b)
    torch.testing.assert_close(found, slerp(b, a, lambdas).flip(0))
    unit = slerp(a / a.norm(), b / b.norm(), lambdas).double().flatten(1)
    torch.testing.assert_close(unit.norm(dim=1), torch.ones(n, dtype=torch.float64), rtol=0, atol=1e-6)
    turned = (unit[1:] * unit[:-1]).sum(1).clamp(-1, 1).acos()  # by equal angles
    torch.testing.assert_close(turned, turned[:1].expand(n - 1), rtol=0, atol=2e-3)


@given(st.floats(0, 1), st.floats(1e-12, 1e-5))
def test_arcs_between_neighbours_are_straight(share, step):
    a = noise(1, 20, dtype=torch.float64)
    b = a + step * noise(2, 20, dtype=torch.float64)
    found = slerp(a, b, [share])[0]
    assert distance(found, a + share * (b - a)) < step**2 + 1e-15
    assert torch.equal(slerp(a, a, [share])[0], a)


def test_what_has_no_arc():
    a = noise(1, 20)
    assert torch.equal(slerp(a, 0 * a, [0.5])[0], a / 2)
    assert torch.equal(slerp(0 * a, 0 * a, [0.5])[0], 0 * a)
    with pytest.raises(ValueError, match="point opposite ways"):
        slerp(a, -2 * a, [0.5])
    with pytest.raises(ValueError, match=r"two of a kind, got torch\.float32"):
        slerp(a, a.double(), [0.5])
    with pytest.raises(ValueError, match="two of a kind"):
        slerp(a, a[1:], [0.5])


# The ends


@pytest.mark.parametrize("name", METHODS)
def test_the_ends_are_the_reconstructions(name, tiny, flow, runs):
    """What the sampler is given is theirs bit for bit, whatever the method keeps; what it makes of it to rounding."""
    method = METHODS[name]
    if isinstance(method, NullText):
        method = dataclasses.replace(method, iterations=2, guidance_scale=2.0)
    pipe = flow if isinstance(method, FlowMethod) else tiny
    a, b = pair(pipe, method, dtype="float64")
    assert set(a.state) <= set(WAYS)
    runs.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found, wanted = between(pipe, a, b), back(pipe, Inversion.concatenate([a, b]))
    (state, condition), (plain, told) = runs
    for mine, theirs in ((state, plain), *((x, y) for x, y in zip(condition, told, strict=True) if x is not None)):
        assert mine.keys() == theirs.keys()
        for each in mine:
            assert torch.equal(mine[each][[0, -1]], theirs[each]), each
    assert distance(found[[0, -1]], wanted) < 1e-9
    assert found.isfinite().all()
    assert distance(found[1:2], found[:1]) > 1e-3


@pytest.mark.parametrize(("name", "kept"), [("edict", "partner"), ("bdia", "previous"), ("obelm", "slope")])
def test_pairs_stay_pairs(name, kept, tiny):
    """By one weight for both: what a step took from one to the other is blended too."""
    a, b = pair(tiny, name)
    ends = {
        n: torch.cat([x, y]) for n, x, y in (("latents", a.latents, b.latents), (kept, a.state[kept], b.state[kept]))
    }
    both = Between(**vars(Inversion.concatenate([a, b])), lambdas=torch.tensor([0.3], dtype=torch.float64))
    state, _ = both._each(ends, ({}, None))
    stacked = [torch.stack([x.flatten() for x in side.double()], 1) for side in ends.values()]
    found = [state[n].flatten().double() for n in ends]
    weights = torch.linalg.lstsq(stacked[0], found[0]).solution
    assert float(weights.square().sum()) == pytest.approx(1, abs=0.2)
    torch.testing.assert_close(stacked[1] @ weights, found[1], rtol=0, atol=1e-6)


def test_a_batch_is_its_members(tiny):
    a, b = pair(tiny, "edict", dtype="float64")
    nine, three = between(tiny, a, b, 9), between(tiny, a, b, 3)
    assert distance(nine[::4], three) < 1e-9
    turned = between(tiny, b, a, 9)
    assert distance(turned.flip(0), nine) < 1e-9


def test_what_it_returns(tiny):
    a, b = pair(tiny)
    found = interpolate(tiny, a, b, 4)
    assert isinstance(found, Reconstruction)
    assert [picture.size for picture in found.images] == [(64, 64)] * 4
    assert found.latents.shape == (4, 4, 8, 8)
    assert found.stats.evaluations == (2,) * 4
    assert len(interpolate(tiny, a, b).images) == 7
    (only,) = interpolate(tiny, a, b, 2, return_dict=False, output_type="np")
    assert only.shape == (2, 64, 64, 3)
    both = Between(**vars(Inversion.concatenate([a, b])), lambdas=torch.tensor([0, 0.25, 1], dtype=torch.float64))
    told = {"encoder_hidden_states": noise(3, 2, 5, 6), "sizes": torch.ones(2, 4), "labels": torch.tensor([3, 3])}
    _, (positive, negative) = both._each({"latents": torch.cat([a.latents, b.latents])}, (told, told))
    for branch in (positive, negative):
        first, middle, last = branch["encoder_hidden_states"]
        assert torch.equal(first, told["encoder_hidden_states"][0])
        assert torch.equal(last, told["encoder_hidden_states"][1])
        torch.testing.assert_close(middle, 0.75 * first + 0.25 * last)
        assert torch.equal(branch["sizes"], torch.ones(3, 4))
        assert branch["labels"].tolist() == [3, 3, 3]


def test_under_guidance_with_negative_prompts(tiny):
    a, b = pair(tiny, dtype="float64", negative_prompt="blurred")
    found = between(tiny, a, b, guidance_scale=3.0)
    wanted = back(tiny, Inversion.concatenate([a, b]), guidance_scale=3.0)
    assert distance(found[[0, -1]], wanted) < 1e-6
    assert distance(found, between(tiny, a, b)) > 1e-3


def test_embeddings_are_given_again(tiny):
    one, two = noise(1, 1, 10, 32), noise(2, 1, 10, 32)
    a, b = (pair(tiny, prompts=[""], prompt_embeds=each, dtype="float64")[0] for each in (one, two))
    b = dataclasses.replace(b, latents=b.latents + noise(5, 1, 4, 8, 8, dtype=torch.float64))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = between(tiny, a, b, prompt_embeds=torch.cat([one, two]))
    assert distance(found[-1:], back(tiny, b, prompt_embeds=two)) < 1e-9
    with pytest.raises(ValueError, match="pass the same prompt_embeds"):
        between(tiny, a, b)
    with pytest.warns(UserWarning, match="the prompt embeddings are not what"):
        between(tiny, a, b, prompt_embeds=one)


@pytest.mark.filterwarnings("ignore:.* has clip_sample", "ignore:the pipeline samples by")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICKLY else pytest.mark.slow) for name in FAMILIES]
)
def test_every_family(name):
    """Pooled embeddings, sizes, labels, image prompts and control images go along."""
    family = FAMILIES[name]
    pipe = next(iter(family.pipelines.values()))()
    masked = name in ("Qwen-Image", "Z-Image (Turbo)", "Sana", "PixArt-alpha, -sigma")
    prompts = ["" if masked or not family.texts else each for each in ("a peach", "a cat")]
    told = family.told([0, 0], 1.0)
    given = {"method": "ddim", "num_inference_steps": 2, "dtype": "float64"}
    both = invert(pipe, noise(1, 2, *family.shape).clamp(-1, 1), prompts, **given, **told)
    again = {each: value for each, value in told.items() if each not in both.conditions}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = between(pipe, both[0], both[1], **again)
        wanted = back(pipe, both, **again)
    assert distance(found[[0, -1]], wanted) < 1e-6
    assert found[1].isfinite().all()


@pytest.mark.parametrize("make", [qwen_image, z_image])
def test_texts_of_different_lengths_have_nothing_between(make):
    pipe = make()
    x = noise(1, 2, 16, 8, 8)
    a, b = (
        invert(pipe, x[j : j + 1], None, prompt_embeds=noise(j, 1, 3 + j, _width(pipe)), method="ddim", **QUICK)
        for j in range(2)
    )
    a, b = (dataclasses.replace(each, provenance={}) for each in (a, b))
    with pytest.raises(ValueError, match="have 3 and 4 tokens, and between texts of different lengths there is none"):
        between(pipe, a, b, prompt_embeds=[noise(0, 3, _width(pipe)), noise(1, 4, _width(pipe))])
    found = between(pipe, a, b, prompt_embeds=noise(0, 2, 4, _width(pipe)))
    assert found.isfinite().all()


def _width(pipe):
    config = pipe.transformer.config
    return config.get("joint_attention_dim") or config.get("cap_feat_dim")


def test_different_classes_have_nothing_between():
    family = FAMILIES["DiT"]
    pipe = next(iter(family.pipelines.values()))()
    x = noise(1, 2, *family.shape)
    a, b = (invert(pipe, x[j : j + 1], class_labels=j + 1, method="ddim", **QUICK) for j in range(2))
    with pytest.raises(ValueError, match=r"differ in class_labels, 1 and 2, and there is nothing between these"):
        between(pipe, a, b)


def test_second_prompts(tiny):
    pipe = stable_diffusion_xl()
    a, b = (pair(pipe, prompts=["a cat"], prompt_2=each, dtype="float64")[0] for each in ("a cup", "a peach"))
    b = dataclasses.replace(b, latents=b.latents + noise(4, 1, 4, 8, 8))
    assert distance(between(pipe, a, b)[-1:], back(pipe, b)) < 1e-6
    with pytest.raises(ValueError, match="what else their network was told"):
        between(pipe, a, pair(pipe, dtype="float64")[1])


# Runtimes


@pytest.mark.parametrize("method", ["ddim", "edict"])
def test_captured_is_plain(method, graphs):  # noqa: F811
    pipe = stable_diffusion()
    a, b = pair(pipe, method, num_inference_steps=4)
    plain, captured = (interpolate(pipe, a, b, cuda_graph=each, output_type="latent") for each in (False, None))
    assert captured.stats.cuda_graph
    assert torch.equal(plain.latents, captured.latents)
    before = len(graphs)
    assert torch.equal(between(pipe, b, a, 7, cuda_graph=None), between(pipe, b, a, 7, cuda_graph=False))
    assert len(graphs) == before


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["compile", "openvino", "onnxruntime"])
def test_other_runtimes(runtime, tiny):
    a, b = pair(tiny, "edict", runtime=runtime)
    found = interpolate(tiny, a, b, output_type="latent")
    assert found.stats.runtime == runtime
    eager = between(tiny, a, b, 7, runtime="eager")
    assert distance(found.latents, eager) < 1e-3


# What is refused


def test_what_is_no_pair(tiny):
    a, b = pair(tiny)
    with pytest.raises(TypeError, match="a must be what invert"):
        interpolate(tiny, a.latents, b)
    with pytest.raises(TypeError, match="b must be what invert"):
        interpolate(tiny, a, None)
    both = Inversion.concatenate([a, b])
    with pytest.raises(ValueError, match=r"b is an inversion of 2 images; pass one of them, as in b\[0\]"):
        interpolate(tiny, a, both)
    with pytest.raises(ValueError, match="a is an inversion of 0 images"):
        interpolate(tiny, both[:0], b)


@pytest.mark.parametrize(
    ("n", "error"),
    [
        (0, ValueError),
        (1, ValueError),
        (-3, ValueError),
        (2.0, TypeError),
        (True, TypeError),
        (None, TypeError),
        ("3", TypeError),
    ],
)
def test_how_many(n, error, tiny):
    with pytest.raises(error, match="n must be"):
        interpolate(tiny, *pair(tiny), n)


def test_inversions_that_differ(tiny):
    a, b = pair(tiny)

    def other(message, **changes):
        with pytest.raises(ValueError, match=message):
            interpolate(tiny, a, dataclasses.replace(b, **changes))

    other(
        r"differ in latents: torch.float32 \(1, 4, 8, 8\) and torch.float32 \(1, 4, 8, 6\)", latents=b.latents[..., :6]
    )
    other("differ in latents: torch.float32", latents=b.latents.double())
    other("differ in node: 2 and 1", node=1)
    other("differ in guidance_scale: 1.0 and 2.0", guidance_scale=2.0)
    other("differ in schedule", schedule=pair(tiny, num_inference_steps=5)[0].schedule)
    other(r"differ in method: DDIM\(.*\) and FixedPoint", method=METHODS["anderson"])
    other("some of the inversions have a prompt and some have none", prompt=None)
    other("latents of b are not finite", latents=b.latents * math.nan)
    other("opposite ways", latents=-a.latents)
    other("runtime they ran in", stats=dataclasses.replace(b.stats, runtime="compile"))
    other("the dtype they ran in", stats=dataclasses.replace(b.stats, dtype=torch.bfloat16))
    e, f = pair(tiny, "edict")
    with pytest.raises(ValueError, match="state 'partner'"):
        interpolate(tiny, e, dataclasses.replace(f, state={"partner": f.state["partner"][..., 1:]}))
    with pytest.raises(ValueError, match="partner of a are not finite"):
        interpolate(tiny, dataclasses.replace(e, state={"partner": e.latents / 0}), f)
    with pytest.raises(ValueError, match="names of their state"):
        interpolate(tiny, e, dataclasses.replace(f, state={}))


def test_other_pipelines(tiny):
    """Two networks are refused; one that is neither's is warned of, as when rebuilding."""
    other = stable_diffusion()
    with torch.no_grad():
        other.unet.conv_out.weight.mul_(1.5)
    a, b = pair(tiny)
    with pytest.raises(ValueError, match=r"what they were made with, network.weights"):
        interpolate(tiny, a, pair(other)[1])
    with pytest.warns(UserWarning, match="the network's weights are not what the inversion was made with"):
        interpolate(other, a, b, 2, output_type="latent")
    with pytest.raises(ValueError, match="network predicts 'flow', the schedule is for 'epsilon'"):
        interpolate(stable_diffusion_3(), a, b)


def test_a_state_that_nothing_is_known_of(tiny):
    @dataclasses.dataclass(frozen=True)
    class Mine(Method):
        def inverter(self, problem: Problem, start: int = 0):
            inner = DDIM().inverter(problem, start)
            object.__setattr__(inner, "carried", ("secret",))
            return inner

    a, b = (dataclasses.replace(each, method=Mine(), state={"secret": each.latents}) for each in pair(tiny))
    with pytest.raises(ValueError, match="Mine keeps 'secret' in its state, and how that goes"):
        interpolate(tiny, a, b)
