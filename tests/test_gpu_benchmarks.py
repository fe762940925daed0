"""The GPU suites as far as a CPU can run them: tiny networks, a stand-in for CUDA graphs, no compiler."""

import math
import time

import pytest
import torch
from recorded import Recorder
from test_runtimes import sdxl
from tiny import stable_diffusion

from benchmarks import calls, device, latency, networks, report, rounds, rows, test_ops
from benchmarks.markdown import DOCS

CPU = torch.device("cpu")


@pytest.fixture
def stand_ins(monkeypatch):
    monkeypatch.setattr(device, "cuda_graphs", lambda _: Recorder())
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(rows, "gemm_flops", lambda *_: 1e11)
    monkeypatch.setattr(rounds, "ROUNDS", 3)


@pytest.mark.slow
def test_whole_calls_of_every_runner_end_alike(stand_ins):
    pipe = stable_diffusion()
    pipe.set_progress_bar_config(disable=True)
    case = latency.of_pipeline("tiny", pipe, torch.randn(2, 4, 8, 8), torch.float64, steps=4)
    found = {row["runner"]: row for row in rounds.measured(case, CPU, time.monotonic())}
    assert list(found) == list(case.runners)
    for name, row in found.items():
        assert "skipped" not in row, row
        assert row["rounds"] == 3
        assert row["evaluations"] >= 4
        assert math.isnan(row["error"]) if rounds.ALONE in name else row["error"] < 1e-5
        assert math.isnan(row["loop"]) != name.startswith("invfast")
    assert found[rounds.EAGER]["speed"] == found[rounds.TREES]["speed_graphs"] == 1


def test_a_network_alone(stand_ins):
    made = networks.Case(lambda: networks._random(sdxl), 8, (7, 32), {"text_embeds": (16,), "time_ids": (6,)})
    found = rounds.measured(latency.of_network("net", made, torch.float64, CPU, count=2), CPU, time.monotonic())
    assert [row["error"] < 1e-5 for row in found] == [True] * 5


def test_a_network_of_invert_is_replayed_for_all_steps(stand_ins, tiny, monkeypatch):
    made = []
    monkeypatch.setattr(device, "cuda_graphs", lambda _: made.append(Recorder()) or made[-1])
    done = calls.network_of(calls.Task(tiny, torch.randn(1, 4, 8, 8), "a cat", 3), "eager")()
    assert done.evaluations == 3
    assert len(made[0].made) == 1
    assert done.output.shape == (1, 4, 8, 8)


def case(**runners):
    return rounds.Case("c", 1, 10, torch.float32, runners, {"": torch.ones(1), "auto": torch.zeros(1) + 2}, 10**6)


def test_runners_that_fail_or_come_too_late_are_left_out(stand_ins, monkeypatch):
    def broken():
        raise RuntimeError("no\nsuch thing")

    def fine():
        return lambda: calls.Done(torch.ones(1), 10)

    monkeypatch.setattr(rounds, "READY_WITHIN", 0.2)

    def slow():
        time.sleep(0.3)
        return fine()

    runners = {"broken": broken, "fine": fine, "auto": slow, "late": fine}
    found = rounds.measured(case(**runners), CPU, time.monotonic())
    assert [row["runner"] for row in found] == ["fine", "auto", "broken", "late"]
    assert [row.get("error") for row in found] == [0, 0.5, None, None]
    assert [row.get("skipped") for row in found[2:]] == ["RuntimeError: no such thing", "its part was 0.2 s old"]


def test_a_runner_that_breaks_later_costs_no_other_its_row(stand_ins):
    left = iter([calls.Done(torch.ones(1), 10)] * 3)

    def breaks():
        done = next(left, None)
        if done is None:
            raise ValueError("worn out")
        return done

    runners = {"breaks": lambda: breaks, "fine": lambda: lambda: calls.Done(torch.ones(1), 10)}
    found = rounds.measured(case(**runners), CPU, time.monotonic())
    assert [(row["runner"], row.get("rounds"), row.get("skipped")) for row in found] == [
        ("fine", 3, None),
        ("breaks", None, "ValueError: worn out"),
    ]


def test_rounds_end_in_time_but_not_before_there_are_a_few(stand_ins, monkeypatch):
    monkeypatch.setattr(rounds, "ROUNDS", 50)
    fine = {"fine": lambda: lambda: calls.Done(torch.ones(1), 10)}
    (row,) = rounds.measured(case(**fine), CPU, time.monotonic() - rounds.READY_WITHIN + 100)
    assert row["rounds"] == 50
    monkeypatch.setattr(rounds, "DONE_WITHIN", 0)
    (row,) = rounds.measured(case(**fine), CPU, time.monotonic())
    assert row["rounds"] == rounds.FEWEST


def test_what_a_part_promised():
    def of(runner, ms, **more):
        return {"runner": runner, "p50": ms * 50 / 1e3, "steps": 50, "batch": 1, **more}

    alone = f"{rounds.ALONE}, compile"
    found = [of(rounds.TREES, 6), of(latency.COMPILED, 4.6, speed_graphs=1.3), of(latency.AUTO, 5.2), of(alone, 4.5)]
    assert [each.split()[-1] for each in latency.verdicts("sd15-b1", found)] == ["met", "met", "MISSED", "met"]
    assert latency.verdicts("sd15-b1", [{"runner": latency.COMPILED, "skipped": "no time"}]) == []


def test_ops_inside_graphs(stand_ins, monkeypatch):
    monkeypatch.setattr(test_ops, "IN_A_GRAPH", 2)
    monkeypatch.setattr(test_ops, "SLICE", 0)
    ops = test_ops.OPS["lincomb"]

    def some(shape):
        runners, moved = ops(shape)
        return {**runners, "reads": lambda: torch.ones(1).item()}, moved

    monkeypatch.setitem(test_ops.OPS, "lincomb", some)
    recorded = test_ops.recorded

    def as_on_a_gpu(*given):  # where it is a RuntimeError
        try:
            return recorded(*given)
        except AssertionError as error:
            raise RuntimeError(str(error)) from error

    monkeypatch.setattr(test_ops, "recorded", as_on_a_gpu)
    shape = test_ops.SHAPES[0]
    found = test_ops.measured("lincomb", shape, test_ops.GRAPH, lambda one: [one() for _ in range(3)])
    of = {row["runner"]: row for row in found}
    assert of["reference"]["speed"] == of["copy"]["share_of_copy"] == 1
    assert "reads from the device" in of["reads"]["skipped"]
    assert {row["case"] for row in found} == {f"lincomb {shape}, in a CUDA graph"}
    assert 0 < of["reference"]["share_of_step"] < 1


def test_rows_name_the_gpu_and_the_commit_they_are_told(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
    monkeypatch.setattr(rows.shutil, "which", lambda _: None)
    monkeypatch.setenv("COMMIT", "abc")
    found = rows.place.__wrapped__("cuda")
    assert found["machine"].startswith("a card; ")
    assert found["commit"] == "abc"
    assert {"torch", "CUDA"} <= set(found["versions"])


def test_tables_have_columns_for_what_was_measured():
    shared = {"case": "c", "steps": 50, "batch": 4, "machine": "m", "versions": {}, "commit": "d", "note": "Old."}
    ran = {**shared, "runner": "ran", "p50": 1.0, "p20": 0.9, "p80": 1.2, "loop": 0.8, "speed": 2.0}
    table = report.call_tables([ran, {**shared, "runner": "other", "skipped": "no time"}])
    assert "|  | ms an image and step (p20 to p80) | of them the loop | speed |" in table
    assert "| ran | 5.00 (4.50 to 6.00) | 4.00 | 2.00 |" in table
    assert "| other | not run: no time |  |  |" in table
    assert table.rstrip().endswith("commit d. Old.")


@pytest.mark.parametrize(("suite", "shown", "page", "mark"), [each for each in report.SUITES if "gpu" in each[0]])
def test_the_pages_show_the_committed_rows(suite, shown, page, mark, tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "FOLDER", tmp_path)
    content = (DOCS / page).read_text()
    assert f"<!-- {mark} -->\n{shown(rows.newest(suite))}<!-- /{mark} -->" in content
