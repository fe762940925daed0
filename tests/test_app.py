"""The page without a browser: what it computes, its jobs, its models, its server. tests/app has the browser."""

import errno
import socket
import threading

import pytest
import torch
from PIL import Image
from test_imports import files, imports

from invfast import demo, invert
from invfast.app import jobs, server, uploads, work
from invfast.app.models import Models
from invfast.methods import DDIM
from invfast.watermark import GaussianShading, save_key

PEACH, APPLE = (str(demo.ROOT / "images" / f"{name}.png") for name in ("peach", "apple"))


@pytest.fixture(scope="module")
def models():
    return Models()


@pytest.fixture
def settings(models):
    return work.Settings(models.get(""), DDIM(), 3)


def test_gradio_is_imported_by_the_page_alone():
    found = {path.name for path, part in files() for name in imports(path) if name.partition(".")[0] == "gradio"}
    assert found == {"checking.py", "comparing.py", "inverting.py", "page.py", "parts.py"}


def test_an_image_is_inverted(settings, samples):
    found = work.invert(settings, PEACH, "noto peach")
    own = invert(demo.load_pipeline(), *samples["peach"], method="ddim", num_inference_steps=3)
    assert torch.equal(found.inversion.latents, own.latents)
    assert found.source.size == found.rebuilt.size == (64, 64)
    rows = dict(found.rows)
    assert rows["evaluations"] == "3 for 3 steps"
    assert float(rows["PSNR to VAE round trip"].removesuffix(" dB")) > 10


@pytest.mark.parametrize(("size", "side", "expected"), [((200, 100), None, (64, 64)), ((30, 50), 96, (96, 96))])
def test_the_middle_is_cut_out(settings, tmp_path, size, side, expected):
    picture = Image.new("RGB", size, "red")
    picture.paste("blue", (size[0] // 4, size[1] // 4, size[0] * 3 // 4, size[1] * 3 // 4))
    picture.save(tmp_path / "a.png")
    found = work.Settings(settings.pipe, DDIM(), 3, side).read(str(tmp_path / "a.png"))
    assert found.size == expected
    assert found.getpixel((expected[0] // 2, expected[1] // 2)) == (0, 0, 255)
    assert found.getpixel((0, 0)) == (255, 0, 0)


def test_what_cannot_be_used_is_said(settings, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    for message, call in {
        "no image: drop a PNG": lambda: work.invert(settings, None, ""),
        "not one of PNG, JPEG, WEBP": lambda: work.invert(settings, str(tmp_path / "text.png"), ""),
        "size must be at most 2048": lambda: work.Settings(settings.pipe, DDIM(), 3, 4096).size(),
        "positive multiple of 4": lambda: work.Settings(settings.pipe, DDIM(), 3, 63).size(),
        "no new prompt": lambda: work.edit(settings, PEACH, "", work.Asked("  ")),
        "style goes with method='portrait'": lambda: work.edit(
            settings, PEACH, "", work.Asked("x", "masactrl", style=APPLE)
        ),
        "no second image": lambda: work.interpolate(settings, (PEACH, None), ("", ""), 3),
        "unknown method": lambda: work.compare(settings, PEACH, "", ["dim"]),
        "no methods": lambda: work.compare(settings, PEACH, "", []),
        "no files": lambda: uploads.analyse([]),
        "cannot be used": lambda: uploads.analyse([str(tmp_path / "text.png")]),
        "no images": lambda: uploads.detect(settings, [], [PEACH], "", 0.01),
        "no key": lambda: uploads.embed(settings, None, "", 1, 0, 1),
        "key file": lambda: uploads.embed(settings, [PEACH], "", 1, 0, 1),
    }.items():
        with pytest.raises(ValueError, match=message):
            call()


def test_edits_and_what_lies_between(settings, tmp_path):
    Image.new("L", (64, 64)).save(tmp_path / "black.png")  # nothing may change
    asked = work.Asked("noto apple", "prompt_to_prompt", 3, mask=str(tmp_path / "black.png"))
    source, edited, _ = work.edit(settings, PEACH, "noto peach", asked)
    assert source.size == edited.size
    kept, _ = work.edit(settings, PEACH, "noto peach", asked)[1:]
    assert edited == kept
    styled = work.edit(settings, PEACH, "noto peach", work.Asked("noto peach", "portrait", style=APPLE))[1]
    assert styled != edited
    assert len(work.interpolate(settings, (PEACH, APPLE), ("noto peach", "noto red apple"), 3)) == 3


def test_a_watermark_is_drawn_and_found(settings, tmp_path):
    paths = [str(tmp_path / name) for name in ("a.json", "b.json")]
    for path in paths:
        save_key(GaussianShading.new((4, 16, 16), copies=(1, 4, 4)), path)
    (made,) = uploads.embed(settings, paths[:1], "noto peach", 1, 7, 1.0).values()
    made.save(tmp_path / "marked.png")
    Image.new("RGB", (64, 64), "grey").save(tmp_path / "grey.png")
    images = [str(tmp_path / name) for name in ("marked.png", "grey.png")]
    marked, grey = uploads.detect(settings, images, paths[::-1], "", 1e-4)
    assert marked[:2] == ("marked.png", "a.json")
    assert grey[:2] == ("grey.png", "nothing found")
    with pytest.raises(ValueError, match="an image takes one"):
        uploads.embed(settings, paths, "", 1, 0, 1.0)


def test_saved_inversions_are_analysed(settings, tmp_path):
    path = tmp_path / "peach.safetensors"
    work.invert(settings, PEACH, "").inversion.save(path)
    (title,) = uploads.analyse([str(path), str(path)])
    assert title == "2 latents (4, 16, 16)"


def test_a_cancelled_job_ends_at_its_next_step(settings):
    """Its own session's: the other's goes on, and so does the server."""
    of, steps = jobs.Jobs(), []

    def report(step, total, doing):
        steps.append(step)
        if step == 2:
            of.cancel("one" if len(steps) < 10 else "nobody")

    with pytest.raises(jobs.Cancelled), of.running("one", "invert", report):
        work.invert(settings, PEACH, "")
    assert max(steps) == 2
    of.cancel("one")  # over, and no news to the next
    with of.running("one", "invert", lambda *_: of.cancel("two")):
        assert work.invert(settings, PEACH, "").rows
    assert not settings.pipe.progress_bar.__qualname__.startswith("DiffusionPipeline")


def test_a_job_that_waits_can_be_cancelled():
    of, ended = jobs.Jobs(), []

    def wait():
        try:
            with of.running("two", "invert", lambda *_: None):
                ended.append("ran")
        except jobs.Cancelled:
            ended.append("cancelled")

    with of.running("one", "invert", lambda *_: None):
        of.announce("two", "invert")
        thread = threading.Thread(target=wait)
        thread.start()
        of.cancel("two", "edit")
        thread.join(0.5)
        assert not ended  # one at a time
        of.cancel("two", "invert")
        thread.join(10)
    assert ended == ["cancelled"]
    of.announce("two", "invert")
    of.cancel("two")  # before it began
    wait()
    assert ended == ["cancelled"] * 2


def test_models_are_loaded_once(models, tmp_path):
    assert models.get(" emoji64 ") is models.get(None)
    assert models.get("emoji32").progress_bar is jobs.passing
    (tmp_path / "empty").mkdir()
    with pytest.raises(OSError, match="model_index"):
        models.get(str(tmp_path / "empty"))


def test_a_server_for_others_loads_what_it_was_started_with(tmp_path):
    closed = Models([str(tmp_path)], closed=True)
    for name in ("/etc", "someone/model", "../emoji64"):
        with pytest.raises(ValueError, match=r"none of .*emoji64.* those it was started with"):
            closed.get(name)
    assert closed.names[0] == str(tmp_path)


def test_a_port_in_use_is_named():
    with socket.socket() as used:
        used.bind(("127.0.0.1", 0))
        used.listen()
        port = used.getsockname()[1]
        with pytest.raises(OSError, match=f"port {port} of 127.0.0.1 cannot be .*in use; pass another --port") as found:
            server.check_free("127.0.0.1", port)
    assert found.value.__cause__.errno == errno.EADDRINUSE
    with pytest.raises(OSError, match=r"no\.such\.host\.invalid"):
        server.check_free("no.such.host.invalid", 7860)


def test_without_gradio_the_extra_is_named(models, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gradio", None)
    monkeypatch.delitem(__import__("sys").modules, "invfast.app.page", raising=False)
    monkeypatch.delitem(__import__("sys").modules, "invfast.app.parts", raising=False)
    with (
        pytest.raises(ImportError, match=r"pip install \"invfast\[app\]\""),
        server.serving(models, "127.0.0.1", 1, ""),
    ):
        pass


def test_what_a_visitor_wrote_is_shown_as_text():
    pytest.importorskip("gradio", reason='needs pip install "invfast[app]"')
    from invfast.app import parts

    nasty = ValueError("image '/tmp/x/gradio/" + "0a" * 32 + "/<img src=x onerror=y>.png' is none")
    assert parts.words(nasty) == "image &#x27;&lt;img src=x onerror=y&gt;.png&#x27; is none"
    assert "<b>" not in parts.table([("<b>", "1")])
