"""Rows of the benchmarks: which of them are shown."""

import json

import pytest
import torch

from benchmarks import outside, recovered, report, rows
from invfast import invert


def given(case, runner, machine="a", **more):
    return {"case": case, "runner": runner, "machine": machine, "versions": {}, "commit": "c", **more}


@pytest.fixture
def keep(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "RESULTS", tmp_path / "committed")
    monkeypatch.setattr(rows, "FOLDER", tmp_path / "runs")

    def keep(folder, *found):
        rows.write(tmp_path / folder / "suite.jsonl", found)

    return keep


def test_the_newest_row_of_a_runner_counts(keep):
    keep("committed", given("x", "both", p50=2), given("x", "old", p50=1), given("y", "old", p50=5))
    new, left_out = given("x", "new", p50=4), given("x", "old", skipped="left out of this run")
    keep("runs", new, given("x", "both", p50=3), left_out)
    assert [row["p50"] for row in rows.newest("suite")] == [1, 4, 3, 5]


def test_rows_of_two_machines_do_not_stand_in_one_table(keep):
    keep("committed", given("x", "one"), given("x", "other"), given("y", "one"))
    keep("runs", given("x", "one", machine="b"))
    found = [(row["case"], row["runner"], row["machine"]) for row in rows.newest("suite")]
    assert found == [("x", "one", "b"), ("y", "one", "a")]


def test_nothing_was_run(keep):
    assert rows.newest("suite") == []


def test_a_report_commits_its_rows_and_fills_its_page(keep, tmp_path, monkeypatch, capsys):
    found = [given("50 steps", "ddim", step=0.02, outside=0.0004, around=0.0001)]
    keep("runs", *found)
    (tmp_path / "page.md").write_text("before <!-- m -->\nold\n<!-- /m --> after")
    monkeypatch.setattr(report, "DOCS", tmp_path)
    monkeypatch.setattr(report, "SUITES", [("suite", report.outside_tables, "page.md", "m")])
    monkeypatch.setattr("sys.argv", ["report", "--write"])
    report.main()
    page = (tmp_path / "page.md").read_text()
    assert "| ddim | 20.0 | 0.40 | 2.0% | 0.10 |" in page
    assert "old" not in page
    assert "| ddim | 20.0 | 0.40 | 2.0% | 0.10 |" in capsys.readouterr().out
    assert [json.loads(line) for line in (tmp_path / "committed" / "suite.jsonl").read_text().splitlines()] == found
    (tmp_path / "page.md").write_text("no marks")
    with pytest.raises(SystemExit, match="no <!-- m -->"):
        report.main()


def test_rows_that_divide_by_the_loop_alone_are_not_shown_as_whole_calls(keep, tmp_path, monkeypatch):
    keep("committed", given("50 steps", "ddim", step=0.02, outside=0.0004))
    (tmp_path / "page.md").write_text("<!-- m -->\nold\n<!-- /m -->")
    monkeypatch.setattr(report, "DOCS", tmp_path)
    monkeypatch.setattr(report, "SUITES", [("suite", report.outside_tables, "page.md", "m")])
    monkeypatch.setattr("sys.argv", ["report", "--write"])
    report.main()
    assert "old" in (tmp_path / "page.md").read_text()


@pytest.mark.parametrize("method", ["ddim", "warm_start"])
def test_the_parts_of_a_whole_call_in_networks_kept_from_earlier_calls(tiny, method, monkeypatch):
    monkeypatch.setattr(outside, "ROUNDS", 1)
    before = outside.denoiser.runtimes.prepared, outside.denoiser.Conditioned, torch.autograd.grad
    invert(tiny, torch.zeros(1, 4, 8, 8), "a cat", method=method, num_inference_steps=3, runtime="eager")
    found = outside.share(tiny, torch.zeros(1, 4, 8, 8), "a cat", method, steps=3)
    assert 0 < found.network < found.loop < found.call
    assert before == (outside.denoiser.runtimes.prepared, outside.denoiser.Conditioned, torch.autograd.grad)


def test_recovered_noise_is_measured_and_shown(pipe, monkeypatch):
    """On one picture and few steps: a row for what is given and how it is inverted, in a table a sampler."""
    for name, value in (("COUNT", 1), ("STEPS", 3), ("DECODER", recovered.DecoderInversion(2))):
        monkeypatch.setattr(recovered, name, value)
    methods = [(name, name, {}) for name in ("ddim", "dpm_solver")]
    monkeypatch.setattr(recovered, "inversions", lambda sampler, scheduler: methods)
    before = pipe.scheduler
    try:
        found = list(recovered.measured(pipe, "DPM-Solver++(2M), Karras"))
    finally:
        pipe.scheduler = before
    assert len(found) == 3 * 2
    assert {row["given"] for row in found if row["latents"] < -100} == {"latents themselves"}
    lines = recovered.table(found).splitlines()
    assert lines[0] == "**Sampled by DPM-Solver++(2M), Karras**"
    assert lines[2].startswith("| given | its latents | ddim (1.00) | dpm_solver (")
    assert len(lines) == 4 + 3


def test_the_solvers_inversion_finds_what_ddims_does_not():
    """In the committed rows, where a grid ends like Karras's; one picture on three steps says nothing of it."""
    found = [json.loads(line) for line in recovered.FILE.read_text().splitlines()]
    best = {
        row["method"]: row["noise"]
        for row in found
        if row["given"] == "latents themselves" and row["case"] == "DPM-Solver++(2M), Karras"
    }
    assert best["dpm_solver"] < best["ddim"] - 10
