"""The accuracy benchmark: what it measures, that it goes on after a cut, and that its report follows from its rows."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks import paper
from benchmarks.accuracy import front, measure, pictures, report, run, sections, store
from benchmarks.accuracy.cases import Case, cases
from benchmarks.rows import RESULTS
from invfast.methods import (
    DDIM,
    METHODS,
    OBELM,
    Auto,
    EasyInv,
    FixedPoint,
    ForwardStart,
    NegativePrompt,
    NoiseMaps,
    NullText,
    ReNoise,
)


class Bench:
    """Stands in for `run.Bench`: digests by name, nothing is loaded."""

    def __init__(self, weights="w"):
        self.weights = weights

    def key(self, case):
        return store.key(case.settings(), self.weights, "images")


def case(name="DDIM", method=None, group="guidance 1", steps=10, images="white", **others):
    return Case(group, name, method or DDIM(), steps, images, **others)


def row(name, method, evaluations, quality, steps=50, **others):
    """A row as a run writes it, with figures made up."""
    figures = {"count": 64, **dict.fromkeys(sections.COLUMNS, 1.0), "vae_psnr": 27.25, "vae_ssim": 0.875}
    figures |= {"evaluations": evaluations, "latent_psnr": quality, "below_vae": 0.5, "most_below_vae": 1.5}
    settings = json.loads(json.dumps(case(name, method, steps=steps, **others).settings()))
    kinds = dict.fromkeys(("all", "emoji", "white", "black"), figures)
    return {"run": 1, "key": name, "case": settings, "figures": kinds, "seconds": 0.5, "waste": 0.25}


@pytest.fixture
def rows():
    return [
        row("DDIM", DDIM(), 1.0, 40.0),
        row("auto 70", Auto(70), 1.125, 79.0),
        row("Anderson 5", FixedPoint(5, "anderson"), 5.0, 78.5),
        row("fixed point 3", FixedPoint(3), 3.0, 30.0),
        row("O-BELM", OBELM(), 1.0, 114.0),
    ]


@pytest.fixture
def counted(monkeypatch):
    """Every case that is measured, its figures made up."""
    seen = []
    monkeypatch.setattr(run, "_measured", lambda case, bench: seen.append(case) or {"figures": {"all": {"count": 1}}})
    return seen


def test_every_method_is_measured_on_every_grid():
    found = cases()
    at_one = {n: [c.method for c in found if c.group == "guidance 1" and c.steps == n] for n in (10, 20, 50)}
    guided = [type(c.method) for c in found if c.group == "guided"]
    for name, method in METHODS.items():
        if method.guidance_scale:
            assert type(method) in guided, name
        elif method.own_sampler or method.flow_only:
            continue  # on grids of their own: benchmarks.recovered, benchmarks.flow
        elif name != "easyinv_sdxl":  # its window holds one step or none on a short grid
            assert all(method in here for here in at_one.values()), name
    assert {c.dtype for c in found} == {"float32", "bfloat16", "float16"}
    assert {c.back for c in found if c.group == "guided"} == {3.0, 7.5}
    assert {c.name for c in found if c.model == "emoji64-early"} >= {"DDIM", "EasyInv"}
    assert len(set(found)) == len(found)


def test_the_runs_fit_their_time():
    price = {quick: sum(c.price(pictures.count_of(c.images)) for c in cases(quick)) for quick in (False, True)}
    assert price[False] * 0.008 < 85 * 60
    assert price[True] * 0.008 < 3 * 60


def test_committed_rows_are_those_of_todays_cases():
    """A setting that a method gets later leaves them known, as long as its default is what they were measured with."""
    asked = [json.loads(json.dumps(each.settings())) for each in cases()]
    committed = [row["case"] for row in store.read(RESULTS / "accuracy.jsonl") if "case" in row]
    known = [each for each in committed if each in asked]
    assert {each["method"]["class"] for each in known} >= {"DDIM", "EDICT", "BDIA", "OBELM", "ReNoise", "NullText"}
    assert all("Auto" in str(each["method"]) for each in committed if each not in known)  # its defaults did change


def test_keys_follow_settings_weights_and_images():
    base = case()
    others = [case(steps=20), case(method=EasyInv()), case(dtype="float16"), case(back=3.0), case(images="quick")]
    keys = [store.key(c.settings(), "w", "i") for c in (base, *others)]
    keys += [store.key(base.settings(), "other", "i"), store.key(base.settings(), "w", "other")]
    assert len(set(keys)) == len(keys)
    assert store.key(case().settings(), "w", "i") == keys[0]


def test_a_run_goes_on_after_a_torn_line(tmp_path, counted):
    path, listed = tmp_path / "rows.jsonl", [case(), case("EasyInv", EasyInv()), case("auto", Auto())]
    run.run(listed, path, Bench())
    whole = path.read_text()
    assert [c.name for c in counted] == ["DDIM", "EasyInv", "auto"]
    path.write_text(whole[:-20])
    assert len(store.read(path)) == 3  # the run's own row, and two
    found = run.run(listed, path, Bench())
    assert [c.name for c in counted[3:]] == ["auto"]
    assert [r["case"]["name"] for r in found if "case" in r] == ["DDIM", "EasyInv", "auto"]
    run.run(listed, path, Bench())
    assert len(counted) == 4
    run.run(listed, path, Bench("trained anew"))
    assert len(counted) == 7
    assert len([r for r in store.read(path) if "case" in r]) == 3


def test_a_damaged_line_is_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"run": 1}\n{"run"\n{"run": 2}\n')
    with pytest.raises(ValueError, match=r"line 2 of .*rows\.jsonl"):
        store.read(path)


def test_front_and_what_is_said_of_it(rows):
    found = front.points(rows, 50)
    kept = [point for point in found if not point.own_sampler]
    assert [point.name for point in found if point.own_sampler] == ["O-BELM"]
    assert [point.name for point in front.front(kept)] == ["DDIM", "auto 70"]
    assert "lies on or above the front" in front.verdict(rows, 50)
    assert "39.0 dB (auto 70)" in front.verdict(rows, 50)
    below = [*rows[:2], row("Anderson 5", FixedPoint(5, "anderson"), 5.0, 81.5)]
    assert "at the price of Anderson 5 (5.00 a step) it is 2.5 dB below it" in front.verdict(below, 50)
    cheaper = [*rows[:2], row("warm start", FixedPoint(1, warm_start="constant"), 1.02, 80.0)]
    assert "auto 70 is 1.0 dB below warm start" in front.verdict(cheaper, 50)


def test_acceptance_says_what_is_missing(rows):
    lines = front.acceptance(rows)
    assert lines[0] == ["50", "64", "1.05", "no dial costs so little", ""]
    assert lines[1] == ["50", "70", "2", "79.0 (auto 70, 1.12)", "+9.0"]
    assert lines[2][3:] == ["79.0 (auto 70, 1.12)", "-1.0"]
    assert lines[3][3] == "not run"


def test_the_report_is_a_function_of_the_rows(rows, tmp_path, capsys):
    early = case("DDIM", group="early", model="emoji64-early").settings()
    guided = row("null-text", NullText(), 9.0, 60.0, group="guided", back=7.5)
    other = row("negative prompt", NegativePrompt(), 1.0, 60.0, group="guided", back=7.5)
    path = tmp_path / "rows.jsonl"
    place = {"machine": "a machine", "versions": {"torch": "2"}, "commit": "abc"}
    store.append(path, {"run": 1, "place": place})
    old = row("DDIM", DDIM(), 1.0, 11.0)
    for each in (old, *rows, guided, other, {"run": 1, "key": "e", "case": early, "failed": "nan in the latents"}):
        store.append(path, each)
    report.report(path, None)
    said = capsys.readouterr().out
    assert "| Anderson 5 | 5.00 | 78.5 |" in said
    assert "| DDIM | 1.00 | 40.0 |" in said
    assert "11.0" not in said  # the newer row of a case counts
    assert "| VAE round trip |  |  |  |  | 27.2 | 0.875 |" in said
    assert "the worst 1.50: not within the 1 dB" in said
    assert "The best that stores no trajectory, negative prompt: 0.50 dB, the worst 1.50." in said
    assert "not finite: nan in the latents" in said
    assert "a machine; torch 2; commit abc." in said
    assert Image.open(tmp_path / "pareto.png").size == (1080, 560)


def test_committed_rows_enter_the_pages(rows, tmp_path):
    (tmp_path / "docs" / "methods").mkdir(parents=True)
    targets = {"accuracy": tmp_path / "docs/accuracy.md", "measured": tmp_path / "docs/methods/auto.md"}
    headline = tmp_path / "docs/methods.md"
    for mark, page in (*targets.items(), ("accuracy", headline)):
        page.write_text(f"before\n<!-- {mark} -->\nold\n<!-- /{mark} -->\nafter\n")
    for each in rows:
        store.append(tmp_path / "rows.jsonl", each)
    report.report(tmp_path / "rows.jsonl", tmp_path)
    for page in (*targets.values(), headline):
        text = page.read_text()
        assert text.startswith("before\n")
        assert text.endswith("after\n")
        assert "old" not in text
    assert "| auto 70 | 50 | 1.12 | 79.0 |" in targets["measured"].read_text()
    assert "DDIM" not in targets["measured"].read_text()
    assert "pareto.png" in targets["accuracy"].read_text()
    assert "| auto 70 | 1.12 | 79.0 |" in headline.read_text()


def test_every_method_page_has_a_place_for_its_figures():
    root = Path(__file__).parents[1] / "docs"
    assert "<!-- accuracy -->" in (root / "accuracy.md").read_text()
    for page in (root / "methods").glob("*.md"):
        if page.stem == "flow":  # has rows of its own, of another model
            assert "<!-- flow -->" in page.read_text()
            continue
        if page.stem == "dpm_solver":  # runs on another sampler's grid
            assert "accuracy.md#" in page.read_text()
            continue
        assert page.stem in report.PAGES.values(), page
        assert "<!-- measured -->" in page.read_text(), page


def test_medians_leave_plain_images_apart():
    figures = {"latent_psnr": torch.tensor([10.0, 20.0, 40.0, float("inf"), 1.0])}
    found = measure.by_kind(figures, ["emoji", "emoji", "photographs", "photographs", "white"])
    assert found["all"]["latent_psnr"] == 30
    assert (found["all"]["count"], found["all"]["worst"]) == (4, 10)
    assert found["emoji"]["latent_psnr"] == 15
    assert found["photographs"]["latent_psnr"] is None
    assert found["white"]["latent_psnr"] == 1
    with pytest.raises(FloatingPointError):
        measure.by_kind({"latent_psnr": torch.tensor([float("nan")])}, ["emoji"])


def test_slerp_keeps_the_length_and_ends_where_it_should():
    a, b = torch.randn(2, 3, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(measure.slerp(a, b, 0.0), a)
    assert torch.allclose(measure.slerp(a, b, 1.0), b, atol=1e-6)
    assert torch.equal(measure.slerp(a, a, 0.5), a)
    assert float(measure.slerp(a, b, 0.5).std() / a.std()) == pytest.approx(1, abs=0.05)


@pytest.mark.slow
def test_one_real_case_of_every_kind(pipe):
    bundled, drawn = (measure.encode(pipe, pictures.load(name)) for name in ("bundled 1", "drawn 1"))
    ddim = measure.measure(pipe, case(images="bundled 1", steps=4), bundled)["figures"]["all"]
    exact = measure.measure(pipe, case("O-BELM", OBELM(), images="bundled 1", steps=4), bundled)["figures"]["all"]
    assert 10 < ddim["latent_psnr"] < 50 < exact["latent_psnr"]
    assert ddim["evaluations"] == 1
    assert abs(exact["gain"] - 1) < 1e-4 < ddim["gain"] - 1
    assert exact["midpoint"] < 1e-4 < ddim["midpoint"]
    assert exact["psnr"] == pytest.approx(exact["vae_psnr"], abs=0.1)
    found = {}
    for name, method in (("ddim", DDIM()), ("auto", Auto(70))):
        one = case(name, method, group="interpolation", steps=4, images="drawn 1")
        found[name] = measure.measure(pipe, one, drawn)["figures"]["all"]
    assert found["auto"]["noise_error"] < found["ddim"]["noise_error"] / 4
    assert found["auto"]["image_psnr_6"] > found["ddim"]["image_psnr_6"] + 10
    assert found["ddim"]["image_psnr_1"] > found["ddim"]["image_psnr_6"]


def test_images_are_fixed_and_named():
    for name in ("quick", "white", "bundled 3", "drawn 3"):
        found = pictures.load(name)
        assert len(found) == pictures.count_of(name) == len(found.kinds)
        assert found.digest == pictures.load(name).digest
    assert pictures.load("bundled 3").digest != pictures.load("bundled 2").digest
    for name in ("all", "bundled 17", "drawn x"):
        with pytest.raises(ValueError, match="unknown set of images"):
            pictures.load(name)


def test_captions_of_the_papers_images(tmp_path, peach):
    peach.save(tmp_path / "a.png")
    captions = tmp_path / "captions.json"
    coco = {"images": [{"id": 7, "file_name": "a.png"}]}
    coco["annotations"] = [{"image_id": 7, "caption": text} for text in ("a peach", "fruit")]
    for content, text in ((coco, "a peach"), ({"a.png": "noto peach"}, "noto peach")):
        captions.write_text(json.dumps(content))
        cut, texts = paper.pictures(tmp_path, captions, 32)
        assert (cut[0].size, texts) == ((32, 32), [text])
    captions.write_text("[]")
    with pytest.raises(ValueError, match="captions file of COCO"):
        paper.pictures(tmp_path, captions, 32)
    captions.write_text('{"b.png": "x"}')
    with pytest.raises(ValueError, match="names an image"):
        paper.pictures(tmp_path, captions, 32)
    with pytest.raises(ValueError, match="no images in"):
        paper.pictures(tmp_path / "none", None, 32)


def test_noise_to_be_found_is_no_methods_own(pipe):
    one = case(group="generated", steps=2, images="drawn 1")
    noise, _ = measure.drawn(pipe, one, measure.encode(pipe, pictures.load("drawn 1")))
    given = [ForwardStart().seed, NoiseMaps().seed, ReNoise().seed]
    for seed in (seed + j for seed in given for j in range(64)):
        own = torch.randn(noise.shape[1:], generator=torch.Generator().manual_seed(seed))
        assert not torch.equal(noise[0], own)


def test_an_exact_round_trip_is_no_nan(pipe, monkeypatch):
    given = measure.encode(pipe, pictures.load("bundled 1"))
    given.quality["vae_psnr"] = torch.tensor([torch.inf])
    monkeypatch.setattr(measure.metrics, "psnr", lambda a, b: torch.full((len(a),), torch.inf))
    assert measure.measure(pipe, case(images="bundled 1", steps=2), given)["figures"]["all"]["below_vae"] == 0
