"""What the command line answers without a model, and what it says while it runs."""

import json
import logging
import os
import subprocess
import sys
import warnings

import pytest
from typer.testing import CliRunner

from invfast import demo
from invfast.cli import app, terminal

PEACH = str(demo.ROOT / "images" / "peach.png")
QUESTIONS = [["--help"], ["--version"], ["invert", "--help"], ["invert", "--metod"], ["batch", "--size", "x"], ["fly"]]
HEAVY = ("torch", "diffusers", "transformers", "numpy", "PIL")
ANSWERS = f"""
import contextlib, io, sys

class Refuse:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in {HEAVY!r}:
            raise AssertionError(f"{{name}} was imported")

sys.meta_path.insert(0, Refuse())
from invfast.cli import app
for args in {QUESTIONS!r}:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try: app(args, prog_name="invfast")
        except SystemExit as end: print(end.code or 0, end=" ", file=sys.__stdout__)
    assert said.getvalue().strip(), args
"""
INTERRUPTED = """
import signal, sys

class Ask:
    def find_spec(self, name, *_):
        if name == "torch":
            signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, Ask())
sys.argv[1:] = ["invert", "none.png", "-o", "noise"]
from invfast.cli import main
main()
"""


def python(code, *args, **env):
    command = [sys.executable, "-c", code, *args]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "NO_COLOR": "1", **env})


def test_questions_are_answered_without_torch():
    done = python(ANSWERS)
    assert done.stdout.split() == ["0", "0", "0", "2", "2", "2"], done.stderr


def test_completion_is_answered_without_torch():
    code = ANSWERS.partition("from invfast")[0] + "from invfast.cli import main; main()"
    asked = {"_INVFAST_COMPLETE": "complete_bash", "COMP_WORDS": "invfast invert --me", "COMP_CWORD": "2"}
    done = python(code, **asked)
    assert done.stdout.split() == ["--method"], done.stderr


def test_ctrl_c_during_imports_ends_quietly():
    done = python(INTERRUPTED)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def foreign(message="noise", level=logging.WARNING):
    """What another library logs, by a handler of its own."""
    logging.getLogger("torch.anything").log(level, message)


@pytest.fixture
def chatty():
    """A library that writes to stderr by itself, as torch and diffusers do."""
    logger, said = logging.getLogger("torch.anything"), []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logger.addHandler(handler)
    yield said
    logger.removeHandler(handler)


def test_other_libraries_are_silent_until_the_model_is_loaded(chatty):
    with terminal.spoken(0, None):
        foreign("while imported")
        foreign("broken", logging.ERROR)
        terminal.loaded()
        foreign("while running")
    foreign("after")
    with terminal.spoken(1, None):
        foreign("asked for")
    assert chatty == ["broken", "while running", "after", "asked for"]


def test_where_fonts_are_kept_is_no_news_of_a_run(capsys):
    with terminal.spoken(0, None):
        terminal.loaded()
        logging.getLogger("matplotlib.config").warning("no folder")
        logging.getLogger("PIL").warning("of this run")
    assert "no folder" not in capsys.readouterr().err


def test_all_of_it_is_in_the_log_file(tmp_path, chatty, capsys):
    path = tmp_path / "logs" / "log.txt"
    with terminal.spoken(-1, path), warnings.catch_warnings():
        warnings.simplefilter("always")
        foreign("while imported")
        warnings.warn("for programmers", FutureWarning, stacklevel=1)
        logging.getLogger("invfast").warning("ours")
        terminal.note("a note")
        terminal.error("an error")
    said = path.read_text()
    for each in ("while imported", "for programmers", "WARNING invfast: ours", "INFO invfast: a note", "an error"):
        assert said.count(each) == 1, said
    assert capsys.readouterr().err == "an error\n"
    assert chatty == []


@pytest.mark.parametrize("more", [["-v"], ["-q"], ["--log-file", "log.txt"], []])
def test_loudness_of_a_command(more, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(terminal, "EVERY", 0.0)
    done = CliRunner().invoke(
        app, ["invert", PEACH, "-o", "noise", "--steps", "3", "--method", "ddim", "--json", *more]
    )
    assert done.exit_code == 0, done.output
    json.loads(done.stdout)
    assert ("inverting: step 3 of 3" in done.stderr) == (more != ["-q"])
    assert more != ["-q"] or done.stderr == ""
    if "--log-file" in more:
        said = (tmp_path / "log.txt").read_text()
        assert "inverting: step 3 of 3" in said
        assert not logging.getLogger().handlers or all(
            getattr(each, "baseFilename", "") != str(tmp_path / "log.txt") for each in logging.getLogger().handlers
        )


def test_loudness_that_cannot_be(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["doctor", "-v", "-q"])
    assert done.exit_code == 2
    (tmp_path / "file").write_text("")
    done = CliRunner().invoke(app, ["doctor", "--log-file", "file/log"])
    assert done.exit_code == 1
    assert "log file 'file/log' cannot be written to" in " ".join(done.stderr.split())


def test_one_count_for_all_passes(monkeypatch):
    """Also where a pass was not foreseen, as null-text's second; the bar on a terminal is told the same."""
    monkeypatch.setattr(terminal, "EVERY", 0.0)
    told = []

    class Bar:
        def add_task(self, what, total):
            return 0

        def update(self, task, completed, total):
            told.append((completed, total))

    passes = terminal._Passes("inverting", 1, Bar())
    for _ in range(2):
        with passes.begun(total=2) as bar:
            bar.update()
            bar.update()
    assert told == [(0.5, 1), (1.0, 1), (1.5, 2), (2.0, 2)]
