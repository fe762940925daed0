"""A pipeline's own state while several calls run on it: shared, put back by the last, none taken from another."""

import functools
import threading
from functools import partial

import pytest
import torch
from test_threads import TEXTS, noise, same
from tiny import stable_diffusion
from together import THREADS, WAIT, Meeting, together

from invfast import adapters, invert
from invfast.adapters import Prompts


def step_by_step(pipe, j, on_step):
    """The node that a run of four steps with a callback (step) reached."""
    found = invert(
        pipe,
        noise(j),
        method="ddim",
        num_inference_steps=4,
        runtime="eager",
        callback_on_step_end=lambda pipe, step, t, tensors: on_step(step),
    )
    return found.node


def test_the_first_to_end_takes_nothing_from_the_others():
    pipe = stable_diffusion()
    del pipe._progress_bar_config  # as diffusers makes it
    pipe._all_hooks = [None]  # as if it were offloaded
    before, freed = set(vars(pipe)), []
    pipe.maybe_free_model_hooks = lambda: freed.append(1)
    both, ended = threading.Barrier(2), threading.Event()

    def first():
        def meet(step):
            if step == 1:
                both.wait(WAIT)

        node = step_by_step(pipe, 0, meet)
        ended.set()
        return node, len(freed)

    def second():
        def wait(step):
            if step == 1:
                both.wait(WAIT)
                assert ended.wait(WAIT)

        return step_by_step(pipe, 1, wait)

    assert together(first, second) == [(4, 0), 4]
    assert freed == [1]
    assert set(vars(pipe)) - {"maybe_free_model_hooks"} == before


def test_a_flag_stops_those_under_way_and_none_that_begins_later():
    pipe = stable_diffusion()
    running, stopped, ended = threading.Event(), threading.Event(), threading.Event()

    def first():
        def stop(step):
            if step == 1:
                pipe._interrupt = True
                stopped.set()
                assert running.wait(WAIT)  # in the meantime another call took the flag down

        node = step_by_step(pipe, 0, stop)
        ended.set()
        return node

    def later():
        def wait(step):
            running.set()
            assert ended.wait(WAIT)

        assert stopped.wait(WAIT)
        return step_by_step(pipe, 1, wait)

    assert together(first, later) == [2, 4]
    assert "_interrupt" not in vars(pipe)


def test_a_run_inside_a_callback_lowers_its_own_flag_alone():
    """It goes on after the run inside it, as ever; the other thread's run was under way when the flag rose."""
    pipe, inner = stable_diffusion(), []
    running, ended = threading.Event(), threading.Event()

    def outer():
        def nested(step):
            if step == 1:
                assert running.wait(WAIT)
                inner.append(step_by_step(pipe, 2, lambda step: setattr(pipe, "_interrupt", True)))
                ended.set()

        return step_by_step(pipe, 0, nested)

    def beside():
        def wait(step):
            running.set()
            assert ended.wait(WAIT)

        return step_by_step(pipe, 1, wait)

    assert (together(outer, beside), inner) == ([4, 1], [1])
    assert "_interrupt" not in vars(pipe)


def test_texts_are_encoded_for_one_caller_at_a_time():
    """A fast tokenizer keeps padding and truncation of its last call; pipelines may share it."""
    first, meeting = stable_diffusion(), Meeting(THREADS)
    pipes = [first, type(first)(**first.components)] * 2
    real = type(first).encode_prompt

    @functools.wraps(real)
    def encode(self, *given, **named):
        with meeting:
            return real(self, *given, **named)

    def embedded(j):
        model = adapters.resolve(pipes[j])(pipes[j], "eager")
        return model.condition(torch.zeros(1, 4, 8, 8), Prompts([TEXTS[j]]), 1.0)

    wanted = [embedded(j)[0] for j in range(THREADS)]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(type(first), "encode_prompt", encode)
        found = together(*(partial(embedded, j) for j in range(THREADS)))
    assert meeting.most == 1
    assert all(same(each[0].values(), wanted[j].values()) for j, each in enumerate(found))


@pytest.mark.parametrize("how", ["offloaded", "cast"])
def test_weights_that_hooks_move_or_cast_are_one_callers_at_a_time(how):
    from accelerate import cpu_offload

    pipe = stable_diffusion()
    if how == "offloaded":
        cpu_offload(pipe.unet, "cpu")
    else:
        pipe.unet.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)

    def run(j):
        return invert(pipe, noise(j), TEXTS[j], method="ddim", num_inference_steps=2, runtime="eager").latents

    found = together(*(partial(run, j) for j in range(THREADS)))
    assert all(torch.equal(each, run(j)) for j, each in enumerate(found))
