"""Known noise: sampled with all that is on the way, inverted, and steps swapped either way."""

import dataclasses

import pytest
import torch
from test_caller import fingerprint
from tiny import stable_diffusion
from toy import distance

from invfast import Inversion, Schedule, demo, invert, reconstruct, rows
from invfast.analysis import gaussian, record, self_interpolation, swap, swap_up
from invfast.demo.reparametrised import as_flow
from invfast.methods import EDICT, FixedPoint, ForwardStart, NullText

N = 4
GRID = {"num_inference_steps": N}


@pytest.fixture(scope="module")
def known(pipe):
    """The bundled model in float64, noise, all of the way, and DDIM's inversion of where it led."""
    recording = record(pipe, gaussian((1, 4, 16, 16)), "noto peach", **GRID, dtype="float64")
    inversion = invert(pipe, recording.latents, "noto peach", method="ddim", dtype="float64", **GRID)
    return recording, inversion


def test_a_recording_is_what_diffusers_samples():
    pipe = stable_diffusion()
    noise = gaussian((2, 4, 8, 8))
    recording = record(pipe, noise, ["a peach", ""], **GRID)
    own = pipe(["a peach", ""], latents=noise, guidance_scale=1.0, output_type="latent", **GRID).images
    assert distance(recording.latents, own) < 1e-5


def test_its_parts_belong_to_each_other(known):
    recording, _ = known
    assert recording.outputs.shape == (N, 1, 4, 16, 16)
    assert recording.trajectory.shape == (N + 1, 1, 4, 16, 16)
    assert torch.equal(recording.trajectory[0], recording.latents)
    assert torch.equal(recording.trajectory[-1].float(), recording.noise)
    for i, (p, q) in enumerate(rows.down(recording.schedule)[:, 0]):
        step = p * recording.trajectory[i + 1] + q * recording.outputs[N - 1 - i]
        assert distance(step, recording.trajectory[i]) < 1e-12


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_outputs_have_the_guidance_in_them(scale, pipe):
    more = {"negative_prompt": "noto peach"} if scale > 1 else {}
    recording = record(pipe, gaussian((1, 4, 16, 16)), "photo cat", guidance_scale=scale, **more, **GRID)
    x = recording.noise
    for output, (p, q) in zip(recording.outputs, rows.down(recording.schedule)[:, 0].flip(0), strict=True):
        x = p * x + q * output
    assert distance(x, recording.latents) < 1e-4


def test_the_noise_with_all_outputs_swapped_is_the_image(pipe, known):
    recording, inversion = known
    exact = dataclasses.replace(inversion, latents=recording.noise.double())
    for k in (0, 2, N):
        assert max(swap(pipe, exact, recording.outputs, k).relative) < 1e-6, k


def test_sampling_without_a_swap_is_reconstruct(pipe, known):
    recording, inversion = known
    back = reconstruct(pipe, inversion, output_type="latent").latents
    found = swap(pipe, inversion, recording.outputs, 0)
    wanted = (back - inversion.init_latents).flatten(1).square().mean(1).sqrt()
    assert found.distance == pytest.approx(wanted.tolist(), rel=1e-9)


def test_a_wrong_start_is_carried_along(pipe, known):
    """With all outputs given, sampling is linear: the difference grows as alpha does."""
    recording, inversion = known
    off = (inversion.latents - recording.noise).flatten(1).square().mean(1).sqrt()
    grown = off * recording.schedule.alpha[0] / recording.schedule.alpha[-1]
    assert swap(pipe, inversion, recording.outputs, N).distance == pytest.approx(grown.tolist(), rel=1e-6)


def test_the_error_of_an_inversion_is_in_its_first_steps(pipe, known):
    recording, inversion = known
    errors = []
    for k in range(N):
        found = swap_up(pipe, inversion, recording.outputs, k)
        assert found.stats.evaluations == (N - k,)
        assert found.method == inversion.method
        errors.append(float((found.latents - recording.noise).square().mean().sqrt()))
    assert torch.equal(swap_up(pipe, inversion, recording.outputs, 0).latents, inversion.latents)
    assert errors == sorted(errors, reverse=True)
    assert errors[2] < errors[0] / 3


def test_a_swapped_path_is_the_recorded_one(pipe, known):
    """The last step is the method's own: a fixed point of it is the noise."""
    recording, inversion = known
    exact = dataclasses.replace(inversion, method=FixedPoint(15, "anderson"))
    found = swap_up(pipe, exact, recording.outputs, N - 1)
    assert distance(found.latents, recording.noise) < 1e-6


def test_it_can_be_saved(pipe, known, tmp_path):
    recording, inversion = known
    found = swap_up(pipe, inversion, recording.outputs, 2)
    found.save(tmp_path / "swapped")
    assert Inversion.load(tmp_path / "swapped") == found


def test_rectified_flow():
    pipe = demo.load_pipeline("flow")
    grid = as_flow(Schedule.from_scheduler(demo.load_pipeline().scheduler, N))
    recording = record(pipe, gaussian((1, 4, 16, 16)), "noto peach", schedule=grid)
    inversion = invert(pipe, recording.latents, "noto peach", method="ddim", schedule=recording.schedule)
    exact = dataclasses.replace(inversion, latents=recording.noise)
    assert max(swap(pipe, exact, recording.outputs, 3).relative) < 1e-3
    assert distance(swap_up(pipe, inversion, recording.outputs, 3).latents, recording.noise) < distance(
        inversion.latents, recording.noise
    )


def test_images_between_noise_and_inversion(pipe, known):
    recording, inversion = known

    def error(latents):
        back = reconstruct(pipe, dataclasses.replace(inversion, latents=latents), output_type="latent").latents
        return distance(back, recording.latents)

    found = self_interpolation(recording.noise, inversion.latents, error, points=3)
    assert found.values[0] < 1e-6 < found.values[1] < found.values[2]


def test_the_pipeline_is_untouched(known):
    pipe = stable_diffusion()
    before = fingerprint(pipe)
    recording = record(pipe, gaussian((1, 4, 8, 8)), **GRID)
    inversion = invert(pipe, recording.latents, method="ddim", **GRID)
    swap(pipe, inversion, recording.outputs, 1)
    swap_up(pipe, inversion, recording.outputs, 1)
    assert fingerprint(pipe) == before


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"k": -1}, ValueError, f"k must be an integer from 0 to {N} on a grid of {N} steps, got -1"),
        ({"k": N + 1}, ValueError, f"got {N + 1}"),
        ({"k": 1.0}, ValueError, r"got 1\.0"),
        ({"k": True}, ValueError, "got True"),
        ({"outputs": [1]}, TypeError, "outputs must be a torch tensor"),
        ({"outputs": torch.zeros(1, 1, 4, 16, 16)}, ValueError, r"must be \(at least 2 steps, n, C, h, w\), got"),
        ({"outputs": torch.zeros(N, 2, 4, 16, 16)}, ValueError, "must have the shape of the inversion's latents"),
        ({"outputs": torch.full((N, 1, 4, 16, 16), torch.nan)}, ValueError, "outputs of a step must be finite"),
        ({"inversion": "a"}, TypeError, "inversion must be what invert"),
    ],
)
def test_swaps_that_cannot_be(change, error, message, pipe, known):
    recording, inversion = known
    given = {"inversion": inversion, "outputs": recording.outputs, "k": 2, **change}
    with pytest.raises(error, match=message):
        swap(pipe, given["inversion"], given["outputs"], given["k"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"node": 2}, f"interrupted at node 2 of {N}"),
        ({"method": NullText()}, "NullText takes a second pass"),
        ({"method": ForwardStart(1)}, "ForwardStart begins at the data"),
    ],
)
def test_inversions_that_cannot_be_swapped(change, message, pipe, known):
    recording, inversion = known
    with pytest.raises(ValueError, match=message):
        swap_up(pipe, dataclasses.replace(inversion, **change), recording.outputs, 2)


def test_coupled_methods_go_on_from_there(pipe, known):
    recording, inversion = known
    found = swap_up(pipe, dataclasses.replace(inversion, method=EDICT()), recording.outputs, N - 1)
    assert found.state  # what EDICT returns by
    assert distance(found.latents, recording.noise) < 0.2


def test_what_cannot_be_recorded(pipe):
    with pytest.raises(ValueError, match="noise must be finite"):
        record(pipe, torch.full((1, 4, 16, 16), torch.nan), **GRID)
    with pytest.raises(ValueError, match="2 texts for 1 images"):
        record(pipe, gaussian((1, 4, 16, 16)), ["a", "b"], **GRID)
    with pytest.raises(ValueError, match="do not fit the pipeline"):
        record(pipe, gaussian((1, 3, 16, 16)), **GRID)
    other = Schedule(torch.tensor([0, 500]), torch.tensor([0.9, 0.5]), "v_prediction")
    with pytest.raises(ValueError, match="predicts"):
        record(pipe, gaussian((1, 4, 16, 16)), schedule=other)
