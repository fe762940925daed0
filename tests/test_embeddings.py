"""Embeddings in place of texts: any length, with and without a text encoder; what cannot be is said."""

import warnings

import numpy as np
import pytest
import torch
from tiny import stable_diffusion
from toy import distance

from invfast import invert, reconstruct
from invfast.methods import NegativePrompt, NullText, PromptTuning

QUICK = {"num_inference_steps": 2}
TOKENS, WIDTH = 12, 32  # of the tiny text encoder: the most it can encode


def embeds(tokens=TOKENS, batch=1, seed=0):
    return torch.randn(batch, tokens, WIDTH, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def mute():
    """As diffusers loads it to save memory."""
    pipe = stable_diffusion()
    pipe.text_encoder = pipe.tokenizer = None
    return pipe


@pytest.fixture(scope="module")
def x():
    return embeds()[:, :4, :4].reshape(1, 4, 2, 2).repeat(2, 1, 4, 4) * torch.tensor([1.0, 0.5]).view(2, 1, 1, 1)


def back(pipe, inversion, **given):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the same prompt: nothing to warn of
        return reconstruct(pipe, inversion, output_type="latent", **given).latents


def test_more_tokens_than_the_encoder_takes(tiny, x):
    """A branch that is encoded from a text is repeated, the negative one and the positive one."""
    text, long = tiny.encode_prompt("", "cpu", 1, False)[0], embeds(2 * TOKENS)
    inv = invert(tiny, x, prompt_embeds=long, method="ddim", **QUICK)
    guided = back(tiny, inv, guidance_scale=3.0, prompt_embeds=long)
    spelt = back(tiny, inv, guidance_scale=3.0, prompt_embeds=long, negative_prompt_embeds=text.repeat(1, 2, 1))
    assert torch.equal(guided, spelt)
    assert distance(guided, back(tiny, inv, prompt_embeds=long)) > 1e-3  # guidance did something
    inv = invert(tiny, x, method="ddim", **QUICK)
    guided = back(tiny, inv, guidance_scale=3.0, negative_prompt_embeds=long)
    given = {"prompt_embeds": text.repeat(1, 2, 1), "negative_prompt_embeds": long}
    inv = invert(tiny, x, prompt_embeds=given["prompt_embeds"], method="ddim", **QUICK)
    assert distance(guided, back(tiny, inv, guidance_scale=3.0, **given)) < 1e-5


def test_repeating_tokens_is_exact(tiny, x):
    options = {"method": "ddim", "dtype": "float64", **QUICK}
    once, thrice = (invert(tiny, x, prompt_embeds=embeds().repeat(1, n, 1), **options).latents for n in (1, 3))
    other = invert(tiny, x, prompt_embeds=embeds(seed=1), **options).latents
    assert distance(thrice, once) < 1e-12
    assert distance(other, once) > 1e-4


@pytest.mark.parametrize("tokens", [(13, 12), (12, 18), (77, 154 + 1)])
def test_lengths_without_a_common_multiple_are_refused(tokens, tiny, x):
    positive, negative = map(embeds, tokens)
    message = f"prompt has {tokens[0]} tokens and the negative prompt {tokens[1]}.*of one length"
    inv = invert(tiny, x, prompt_embeds=positive, **QUICK)
    given = {"prompt_embeds": positive, "negative_prompt_embeds": negative}
    with pytest.raises(ValueError, match=message):
        reconstruct(tiny, inv, guidance_scale=3.0, **given)
    with pytest.raises(ValueError, match=message), pytest.warns(UserWarning, match="amplifies"):
        invert(tiny, x, guidance_scale=3.0, **given, **QUICK)


@pytest.mark.parametrize("method", [NullText(iterations=1), PromptTuning(iterations=1), NegativePrompt()])
def test_methods_that_keep_embeddings_take_any_length(method, tiny, x):
    given = {"prompt_embeds": embeds(2 * TOKENS)}
    inv = invert(tiny, x, method=method, **given, **QUICK)
    assert inv.state["embeds"].shape[2] == 2 * TOKENS
    assert reconstruct(tiny, inv, output_type="latent", **given).latents.isfinite().all()
    with pytest.raises(ValueError, match="as many tokens as they had then"):
        reconstruct(tiny, inv, prompt_embeds=embeds(4 * TOKENS))


def test_another_length_on_the_way_back_is_another_prompt(tiny, x):
    inv = invert(tiny, x, method="ddim", prompt_embeds=embeds(), **QUICK)
    with pytest.warns(UserWarning, match="prompt embeddings are not what"):
        latents = reconstruct(tiny, inv, prompt_embeds=embeds(5), output_type="latent").latents
    assert latents.isfinite().all()


def test_without_a_text_encoder(mute, tiny, x):
    given = {"prompt_embeds": embeds(), "negative_prompt_embeds": embeds(seed=1)}
    inv, wanted = (invert(pipe, x, None, method="ddim", **given, **QUICK) for pipe in (mute, tiny))
    assert torch.equal(inv.latents, wanted.latents)
    guided = (
        reconstruct(pipe, inv, guidance_scale=3.0, output_type="latent", **given).latents for pipe in (mute, tiny)
    )
    assert torch.equal(*guided)


@pytest.mark.parametrize("missing", [["text_encoder"], ["tokenizer"], ["text_encoder", "tokenizer"]])
def test_a_text_without_what_encodes_it(missing, x):
    pipe = stable_diffusion()
    for part in missing:
        setattr(pipe, part, None)
    message = f"the pipeline has no {' and no '.join(missing)}; pass "
    with pytest.raises(ValueError, match=f"^prompt 'a cat' cannot be encoded: {message}prompt_embeds, "):
        invert(pipe, x, "a cat", **QUICK)
    inv = invert(pipe, x, prompt_embeds=embeds(), **QUICK)
    with pytest.raises(ValueError, match=f"^negative_prompt '' cannot be encoded: {message}negative_prompt_embeds"):
        reconstruct(pipe, inv, guidance_scale=3.0, prompt_embeds=embeds())


@pytest.mark.parametrize("part", ["text_encoder", "tokenizer"])
def test_int8_says_what_calibration_needs(part, x):
    pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    pipe = stable_diffusion()
    setattr(pipe, part, None)
    with pytest.raises(ValueError, match=f"calibrated on texts of its own, and the pipeline has no {part}"):
        invert(pipe, x, prompt_embeds=embeds(), runtime="openvino", dtype="int8", **QUICK)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (embeds().numpy(), r"must be a tensor of shape \(1 or 2, tokens, 32\), got ndarray"),
        (embeds()[:0], r"got \(0, 12, 32\)"),
        (embeds()[:, :0], r"got \(1, 0, 32\)"),
        (embeds()[0], r"got \(12, 32\)"),
        (embeds().long(), "must be a dense tensor of floats with values, got torch.int64"),
        (embeds().to(torch.complex64), "got torch.complex64"),
        (embeds() > 0, "got torch.bool"),
        (embeds().to("meta"), "on meta"),
        (embeds().to_sparse(), "torch.sparse_coo"),
        (np.nan * embeds(), "non-finite"),
    ],
)
@pytest.mark.parametrize("name", ["prompt_embeds", "negative_prompt_embeds"])
def test_what_are_no_embeddings(name, value, message, tiny, x):
    given = {"prompt_embeds": embeds(), name: value}
    with pytest.raises(ValueError, match=f"{name} .*{message}"), pytest.warns(UserWarning, match="amplifies"):
        invert(tiny, x, None, guidance_scale=3.0, **given, **QUICK)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_embeddings_of_any_float(dtype, tiny, x):
    given = embeds().to(dtype)
    found, wanted = (invert(tiny, x, prompt_embeds=e, method="ddim", **QUICK).latents for e in (given, given.float()))
    assert found.dtype == torch.float32
    assert torch.equal(found, wanted)


def test_embeddings_stay_the_callers(tiny, x):
    """Those that require gradients too; and what an inversion keeps does not change with them."""
    given = embeds().requires_grad_()
    inv = invert(tiny, x, method="negative_prompt", prompt_embeds=given, **QUICK)
    kept = inv.state["embeds"].clone()
    latents = reconstruct(tiny, inv, prompt_embeds=given, output_type="latent").latents
    assert not latents.requires_grad
    with torch.no_grad():
        given.add_(1)
    assert torch.equal(inv.state["embeds"], kept)


def test_the_width_is_that_of_the_networks_input(tiny, x):
    pipe = stable_diffusion()
    pipe.unet.register_to_config(cross_attention_dim=(WIDTH,) * 3)  # as many as blocks, all alike
    assert torch.equal(
        invert(pipe, x, prompt_embeds=embeds(), **QUICK).latents,
        invert(tiny, x, prompt_embeds=embeds(), **QUICK).latents,
    )
    with pytest.raises(ValueError, match=r"shape \(1 or 2, tokens, 32\), got \(1, 12, 16\)"):
        invert(pipe, x, prompt_embeds=embeds()[..., :16], **QUICK)
    pipe.unet.encoder_hid_proj = torch.nn.Linear(16, WIDTH)  # widened by the network itself
    pipe.unet.register_to_config(encoder_hid_dim=16, encoder_hid_dim_type="text_proj")
    assert invert(pipe, x, prompt_embeds=embeds()[..., :16], **QUICK).latents.isfinite().all()
    with pytest.raises(ValueError, match=r"shape \(1 or 2, tokens, 16\), got \(1, 12, 32\)"):
        invert(pipe, x, prompt_embeds=embeds(), **QUICK)
