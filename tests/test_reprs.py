"""What a notebook prints of a result: one short line, without the numbers of its tensors and without secrets."""

import dataclasses

import pytest
import torch
from watermarks import A, B

from invfast import DecoderInversion, Schedule, analysis, batch, interpolate, invert, plain, reconstruct
from invfast.compare import COLUMNS, Comparison
from invfast.watermark import GaussianShading, RingID, TreeRing, detect, score

SHAPE = (4, 16, 16)
NONCE = "0" * 32


@pytest.fixture(scope="module")
def results(pipe, samples, tmp_path_factory):
    """One of every public class, the longest that it easily has."""
    folder = tmp_path_factory.mktemp("images")
    pictures, prompts = [samples[name].image for name in ("peach", "owl")], ["noto peach", "twemoji owl " * 40]
    pictures[0].save(folder / "peach.png")
    (folder / f"{'broken' * 20}.png").write_bytes(b"no image")
    quick = {"num_inference_steps": 2, "method": "ddim"}
    inversion = invert(pipe, pictures, prompts, **quick, save_trajectory=True)
    recording = analysis.record(pipe, analysis.gaussian((2, *SHAPE), 1), "noto peach", num_inference_steps=2)
    again = invert(pipe, recording.latents, "noto peach", **quick)
    noise, other = analysis.gaussian((8, *SHAPE), 1), analysis.gaussian((8, *SHAPE), 2)
    report = analysis.analyze(noise, other, noise)
    assert len(report.found) > 5
    keys = (
        GaussianShading(SHAPE, A, "01" * 512, (1, 1, 1), NONCE),
        TreeRing.new(SHAPE),
        dataclasses.replace(RingID.new(SHAPE), secret=B),
    )
    found = detect(pipe, pictures, keys[0], method="ddim", num_inference_steps=2)
    task = batch.Detect(keys[:1], batch.Invert(method="ddim", steps=2))
    done = batch.run(folder, folder / "out", task)
    return [
        *(inversion, inversion.stats, inversion.schedule, Schedule(torch.arange(3), torch.tensor([1.0, 0.5, 0.1]))),
        *(reconstruct(pipe, inversion, output_type=each) for each in ("pil", "np", "pt", "latent")),
        *(Comparison([{"method": "ddim"} | dict.fromkeys(COLUMNS, 1 / 3)] * n, pictures[0]) for n in (1, 9)),
        *(interpolate(pipe, inversion[0], inversion[1], n=2), DecoderInversion()),
        *(recording, analysis.swap_up(pipe, again, recording.outputs, 1)),
        *(report, *report.rows, *report.found.values(), *(each.latents for each in list(report.found.values()))),
        analysis.self_interpolation(noise[:1], other[:1], torch.std, points=50),
        *(*keys, found, *found.scores, *score(keys[0].embed(2), keys[0])),
        *(task, done, batch.open(folder / "out"), batch.Result({"latents": noise}, {"seconds": 0.1}), batch.Invert()),
    ]


def test_a_result_is_one_short_line(results):
    for result in results:
        said = repr(result)
        assert len(said) <= 200, said
        assert "\n" not in said
        assert "tensor(" not in said
        assert "array(" not in said
        assert isinstance(result, float) or said.startswith(type(result).__name__), said


def test_no_secret_is_shown(results):
    assert not [each for each in map(repr, results) if A in each or B in each]


def test_every_public_class_of_results_is_among_them(results):
    public = {getattr(module, name) for module in (analysis, batch) for name in module.__all__}
    classes = {each for each in public if isinstance(each, type) and dataclasses.is_dataclass(each)}
    left = classes - {type(each) for each in results}
    assert {each.__name__ for each in left} <= {"Ray", "Share", "Swap", "Worker"}


@dataclasses.dataclass(repr=False)
class Held:
    value: object
    secret: str = dataclasses.field(default="x", repr=False)
    more: int = 0

    __repr__ = plain.line


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (torch.zeros(2, 3), "float32 (2, 3)"),
        (torch.zeros(0), "float32 (0,)"),
        ([torch.zeros(2), torch.zeros(2)], "[float32 (2,), float32 (2,)]"),
        ((1.23456789, float("nan")), "(1.235, nan)"),
        ((38,), "(38,)"),
        ([], "[]"),
        (list(range(1000)), "list of 1000"),
        ({}, "dict of 0"),
        ({"a": torch.zeros(9)}, "dict of 1"),
        ("x" * 10_000, f"'{'x' * 44}..."),
        ("a\nb", "'a\\nb'"),
        (None, "None"),
        (Held(1), "Held(value=1)"),
        (10**60, "int(...)"),
    ],
)
def test_line(value, said):
    assert repr(Held(value, "hidden")) == f"Held(value={said})"


def test_a_line_is_cut():
    many = dataclasses.make_dataclass(
        "Many", [(f"field_{j}", int) for j in range(50)], namespace={"__repr__": plain.line}, repr=False
    )
    said = repr(many(*range(50)))
    assert len(said) == 200
    assert said.endswith("...)")
