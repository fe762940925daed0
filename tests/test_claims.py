"""What two papers claim: verdicts are those of the rows, shards are made once."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline
from tiny import pixel_unet, seeded

from benchmarks.claims import __main__ as claims
from benchmarks.claims import between, edits, latents, report, stated, steps
from benchmarks.claims.shards import Shards
from benchmarks.claims.subjects import Subject
from benchmarks.markdown import DOCS
from invfast.methods import METHODS, ForwardStart

EVERY = [claim for _, each in report.PAPERS.values() for claim in each]


@pytest.fixture(scope="module")
def committed():
    return [json.loads(line) for line in claims.COMMITTED.read_text().splitlines()]


@pytest.fixture
def tiny():
    scheduler = DDIMScheduler(set_alpha_to_one=False, clip_sample=False)
    load = partial(seeded, lambda: DDPMPipeline(unet=pixel_unet(), scheduler=scheduler))
    return Subject("pixel", load, (3, 16, 16), 6, 2, 4, False, (1, 2))


@pytest.mark.parametrize("claim", EVERY, ids=[claim.says[:50] for claim in EVERY])
def test_every_claim_has_a_command_that_prints_its_figures(claim, committed):
    if claim.values is None:
        assert claim.study in report.WHY
        return
    models = claims.STUDIES[claim.study][1]
    assert set(claim.models) <= set(models)
    verdict, measured = report.judged(claim, committed)
    assert verdict != "not measured"
    assert all(f"{model}: " in measured for model in claim.models)


def test_the_page_is_what_the_rows_say(committed):
    assert report.markdown(committed) in (DOCS / "claims.md").read_text()


def test_verdicts():
    assert report.verdict({}) == "not measured"
    assert report.verdict({"pixel": True, "flow": True}) == "confirmed"
    assert report.verdict({"pixel": False}) == "not confirmed"
    assert report.verdict({"pixel": True, "latent": True, "flow": False}) == "confirmed on pixel, latent, not on flow"
    claim = stated.Claim("", "latents", "", stated.by_method("top", "ddim", "the noise"), stated.largest, ("pixel",))
    rows = [
        {"study": "latents", "model": "pixel", "method": m, "top": x} for m, x in (("ddim", 0.5), ("the noise", 0.1))
    ]
    assert report.judged(claim, rows) == ("confirmed", "pixel: ddim 0.5, the noise 0.1")
    rows[0]["top"] = 0.05
    assert report.judged(claim, rows)[0] == "not confirmed"


def test_a_difference_is_said_with_its_error():
    row = {"study": "edits", "model": "latent", "diversity": 2.0}
    rows = [
        {**row, "method": "ddim", "each": {"diversity": [1.0, 2.0, 3.0, None]}},
        {**row, "method": "the noise", "each": {"diversity": [1.1, 2.1, 3.6, 9.0]}},
    ]
    found = stated.paired("diversity", "ddim", "the noise")(rows)
    assert found[stated.DIFFERENCE] == pytest.approx(-0.8 / 3)
    assert found[stated.ERROR] == pytest.approx(0.5 / 3)
    assert not stated.below(found)
    assert not stated.above(found)
    assert stated.below({**found, stated.ERROR: 0.09})
    assert stated.above({stated.DIFFERENCE: 3.0, stated.ERROR: 1.0})


def test_frechet():
    x = np.random.default_rng(1).normal(size=(400, 5))
    y = np.random.default_rng(2).normal(size=(400, 5))
    spread = np.std([between.frechet(np.random.default_rng(j).normal(size=(400, 5)), y) for j in range(3, 60)])
    assert spread / 3 < between.error(x, y) < 3 * spread
    assert between.error(x, y, x) < 1e-12
    assert between.error(x, y, x + 0.01) < between.error(x, y) / 3
    assert between.frechet(x, x) < 1e-9
    assert abs(between.frechet(x, x + 2) - 20) < 1e-9
    assert abs(between.frechet(x, x * 3) - (4 * x.var(0, ddof=1).sum() + 4 * np.square(x.mean(0)).sum())) < 1e-6


def test_how_far_edits_go():
    source, plain = torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.bool)
    plain[:, :2] = True
    made = torch.zeros(3, 2, 3, 4, 4)
    made[1, :, :, 2:] = 1.0  # one of three edits, where the image is not plain
    found = edits.figures(made, source, plain)
    assert found["moved_inside"] == found["diversity_inside"] == 0
    assert found["moved_outside"] == pytest.approx((1 / 3) ** 0.5)
    assert found["diversity_outside"] == pytest.approx((2 / 3) ** 0.5)


def test_every_image_is_given_noise_of_its_own(tiny, tmp_path):
    """The same in every shard, it would be found as correlation."""
    noise = Shards(tiny, tmp_path).several(range(2), ForwardStart(5)).latents.flatten(1)
    assert len(noise) == 8
    assert torch.pdist(noise).min() > 1


def test_a_shard_is_made_once(tiny, tmp_path, monkeypatch):
    shards = Shards(tiny, tmp_path)
    found = shards.several(range(2), METHODS["ddim"])
    assert torch.equal(shards.several(range(2)).latents[4:], tiny.noise(1))
    monkeypatch.setattr(Shards, "recorded", None)
    monkeypatch.setattr(Shards, "invert", None)
    assert torch.equal(Shards(tiny, tmp_path).several(range(2), METHODS["ddim"]).latents, found.latents)


def test_the_studies(tiny, tmp_path):
    shards = Shards(tiny, tmp_path)
    rows = {row["method"]: row for row in latents.rows(shards)}
    assert list(rows)[:3] == ["fresh noise", "the noise", "ddim"]
    assert rows["the noise"]["to_noise"] == 0 < rows["ddim"]["to_noise"]
    taken = list(steps.rows(shards))
    swapped = {row["k"]: row["to_noise"] for row in taken if row["what"] == "swapped"}
    assert swapped[3] < swapped[0]
    assert [row["step"] for row in taken if row["what"] == "step"] == list(range(5))  # the first repeats a level
    ways = {(row["what"], row.get("share")): row for row in between.rows(shards)}
    assert ways["self", 0.0]["off"] < 1e-6 < ways["self", 1.0]["off"]
    assert report.shown("latents", [{"study": "latents", "model": "pixel", **row} for row in rows.values()])


def test_shares():
    assert claims.share_of("2/3") == (2, 3)
    for wrong in ("0/3", "4/3", "2", "a/b", "1/0"):
        with pytest.raises(claims.argparse.ArgumentTypeError, match="expected K/M"):
            claims.share_of(wrong)
