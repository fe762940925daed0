"""Training: the data's rules, and runs that a kill does not change."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from invfast.demo import PROMPTS
from training import batches, evaluation, export, models, objectives
from training.data import HELD_OUT, Data, Emoji, Photo, base_of
from training.loop import Recipe, keep_sitting, train

RECIPE = Recipe(steps=120, batch=4, rate=1e-3, warm_up=12, checkpoint_every=40)


def small_data():
    """Twelve made-up emoji and two photographs."""
    rng = np.random.default_rng(0)
    emoji = []
    for j in range(12):
        pixels = np.zeros((64, 64, 4), np.uint8)
        pixels[8 + j : 56, 8 : 56 - 2 * j] = [*rng.integers(0, 256, 3), 255]
        emoji.append(Emoji(pixels, f"noto shape {j}", str(j)))
    photos = [Photo(rng.integers(0, 256, (80, 100, 3), np.uint8), f"photo {name}") for name in ("a", "b")]
    return Data(emoji[:10], photos, emoji[10:], photos)


def small_run(folder, kill_at=None):
    """120 steps of a small denoiser of pixels; optionally ended by SIGKILL."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    module = models.UNet2DModel(
        sample_size=32,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        add_attention=False,
    )
    loss = objectives.pixels(module, small_data(), models.scheduler().alphas_cumprod, RECIPE)

    def killing(step):
        if step == kill_at:
            signal.raise_signal(signal.SIGKILL)
        return loss(step)

    return train(module, killing, RECIPE, folder)


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_bits(tmp_path):
    small_run(tmp_path / "whole")
    script = f"from test_training import *; small_run(Path({str(tmp_path / 'cut')!r}), kill_at=45)"
    command = [sys.executable, "-c", script]
    killed = subprocess.run(command, cwd=Path(__file__).parent, env={"PYTHONPATH": str(Path(__file__).parents[1])})
    assert killed.returncode == -signal.SIGKILL
    assert torch.load(tmp_path / "cut/checkpoint.pt")["step"] == 40
    small_run(tmp_path / "cut")
    for name in ("checkpoint.pt", "early.pt"):
        whole, cut = (torch.load(tmp_path / run / name) for run in ("whole", "cut"))
        assert whole["step"] == cut["step"]
        for key, value in whole["average"].items():
            assert torch.equal(value, cut["average"][key]), key
    logs = [(tmp_path / run / "log.jsonl").read_text() for run in ("whole", "cut")]
    assert logs[0] == logs[1]
    rows = [json.loads(line) for line in logs[0].splitlines()]
    assert [row["step"] for row in rows] == list(range(120))
    assert np.mean([row["loss"] for row in rows[-20:]]) < 0.8 * np.mean([row["loss"] for row in rows[:20]])


def test_autocast_moves_the_gradient_little():
    torch.manual_seed(0)
    denoiser = models.Denoiser(20)
    tokens = torch.randint(3, 20, (8, models.TOKENS))
    pool = {"mean": torch.randn(8, 4, 16, 16).half(), "std": torch.full((8, 4, 16, 16), 0.1).half()}
    pool |= {"tokens": tokens, "empty": torch.zeros(models.TOKENS, dtype=torch.long)}
    gradients = []
    for bfloat16 in (False, True):
        loss, _ = objectives.denoising(denoiser, pool, models.scheduler().alphas_cumprod, RECIPE, bfloat16)(0)
        denoiser.zero_grad()
        loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in denoiser.parameters() if p.grad is not None]))
    exact, rounded = gradients
    assert 0 < (rounded - exact).norm() < 0.05 * exact.norm()


def test_one_row_of_zeros_stands_for_all():
    """The flow is trained with one row in place of the pipeline's 256, which is the same network."""
    torch.manual_seed(0)
    flow = models.FlowDenoiser(20)
    with torch.no_grad():
        for parameter in flow.transformer.parameters():
            parameter.normal_(0, 0.05) if not parameter.abs().max() else None  # a fresh one's gates are closed
    tokens = torch.tensor([[1, 5, 6, 3, *[0] * 8], [1, 7, 3, *[0] * 9]])
    pipe = export.flow_pipeline(None, None, flow)
    with torch.no_grad():
        told = [each(tokens, output_hidden_states=True) for each in (flow.text_encoder, flow.text_encoder_2)]
        states = torch.cat([each.hidden_states[-2] for each in told], -1)
        zeros = torch.zeros(2, models.NO_T5, states.shape[-1])
        assert zeros.shape == pipe._get_t5_prompt_embeds(["a", "b"], dtype=torch.float32, device="cpu").shape
        x, times = torch.randn(2, 4, 16, 16), torch.tensor([100.0, 700.0])
        pooled = torch.cat([each.text_embeds for each in told], -1)
        whole = flow.transformer(x, torch.cat([states, zeros], 1), pooled, times, return_dict=False)[0]
        assert (flow(x, times, tokens) - whole).norm() < 1e-5 * whole.norm()


def test_a_folder_keeps_its_recipe(tmp_path):
    module = torch.nn.Linear(1, 1)
    loss = lambda step: (module(torch.ones(1)).square().sum(), {})  # noqa: E731
    train(module, loss, Recipe(10, 1, 0.1), tmp_path)
    with pytest.raises(ValueError, match="of another recipe"):
        train(module, loss, Recipe(11, 1, 0.1), tmp_path)


def test_a_later_sitting_takes_up_what_an_earlier_one_left(tmp_path):
    def run(folder, steps, sitting=None):
        torch.manual_seed(0)
        module = torch.nn.Linear(3, 3)
        seen = []

        def loss(step):
            seen.append(step)
            return (module(torch.ones(3)) - 1).square().sum(), {}

        return train(module, loss, Recipe(steps, 1, 0.1, checkpoint_every=5), tmp_path / folder, sitting=sitting), seen

    whole, _ = run("whole", 20)
    kept = tmp_path / "sittings" / "net.safetensors"
    assert keep_sitting(tmp_path / "whole", kept)["steps"] == 20
    again, seen = run("again", 20, kept)
    assert seen == []
    assert torch.equal(again.weight, whole.weight.half().float())
    early, gone_on = (torch.load(tmp_path / folder / "early.pt")["average"] for folder in ("whole", "again"))
    assert torch.equal(gone_on["weight"], early["weight"].half().float())
    assert (tmp_path / "again" / "checkpoint.pt").exists()
    assert run("longer", 22, kept)[1] == [20, 21]
    with pytest.raises(ValueError, match="of another recipe"):
        run("shorter", 19, kept)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    module = torch.nn.Linear(1, 1)
    with pytest.raises(FloatingPointError, match="nan at step 0"):
        train(module, lambda step: (module(torch.ones(1)).sum() * torch.nan, {}), Recipe(10, 1, 0.1), tmp_path)


def test_batches_are_a_function_of_their_seed():
    data = small_data()
    first, words = batches.draw(data, np.random.default_rng((0, 5)), 32)
    again, _ = batches.draw(data, np.random.default_rng((0, 5)), 32)
    assert torch.equal(first, again)
    assert first.shape == (32, 3, 64, 64)
    assert first.min() >= -1
    assert first.max() <= 1
    assert 2 <= sum(word.startswith("photo") for word in words) <= 16
    white = (first[:, :, 0, 0] == 1).all(1)
    assert 8 <= white.sum() <= 28


def test_bases_join_what_differs_by_vendor_gender_and_skin():
    assert base_of("1F3C3-200D-2640-FE0F") == "1F3C3"
    assert base_of("1F468-200D-1F373") == base_of("1F469-200D-1F373") == "1F9D1-1F373"
    assert base_of("1F44B-1F3FD") == "1F44B"
    assert base_of("1F3F3-FE0F") == "1F3F3"


def test_held_out_emoji_are_no_samples():
    lines = [line.split(" ", 1) for line in HELD_OUT.read_text().splitlines()]
    assert len(lines) == len({base for base, _ in lines}) == 146
    samples = {prompt.split(" ", 1)[1] for prompt in PROMPTS.values()}
    assert not samples & {name for _, name in lines}


def test_tokens_are_the_captions_words():
    tokenizer = models.tokenizer(["noto peach", "twemoji slice of pizza"])
    ids = tokenizer(["noto pizza", ""], padding="max_length", truncation=True, return_tensors="pt").input_ids
    assert ids.shape == (2, 12)
    assert tokenizer.convert_ids_to_tokens(ids[0])[:5] == ["<bos>", "noto", "pizza", "<eos>", "<pad>"]
    assert tokenizer.convert_ids_to_tokens(ids[1])[:3] == ["<bos>", "<eos>", "<pad>"]


def test_outlines_do_not_depend_on_size_place_and_ground():
    item = small_data().emoji[0]
    small = batches.place(item, 64, 40, 3, 20, (0, 90, 200))
    error = np.abs(evaluation.outline(small) - evaluation.outline(batches.centred(item))).mean()
    assert error < 0.05
    assert (evaluation.outline(np.full((64, 64, 3), 90, np.uint8)) == 1).all()


@pytest.mark.parametrize("spread", [0, 0.5, 2])
def test_what_a_linear_prediction_leaves_of_the_noise_on_white_latents(spread):
    def encode(pictures):
        latents = spread * torch.randn(len(pictures), 4, 2, 2, generator=generator)
        return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: latents))

    generator, scheduler = torch.Generator().manual_seed(0), models.scheduler()
    vae = SimpleNamespace(encode=encode, config=SimpleNamespace(scaling_factor=1.0))
    found = evaluation.linear_loss(SimpleNamespace(vae=vae, scheduler=scheduler), small_data(), batches=8)
    # Least squares by hand, of noise from x = sqrt(a) latents + sqrt(1 - a) noise: all numbers are independent.
    a = scheduler.alphas_cumprod.double()
    assert found == pytest.approx(float((1 - (1 - a) / (a * spread**2 + 1 - a)).mean()), abs=0.01)
