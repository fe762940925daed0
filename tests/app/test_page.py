"""The page as a visitor uses it. `make test-app`."""

import json
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch
from PIL import Image
from tabs import serving

from invfast import Inversion, demo, invert
from invfast.watermark import GaussianShading, save_key

pytestmark = pytest.mark.app

IMAGES = demo.ROOT / "images"
DONE = "Download the inversion"
LONG = {"method": "edict", "steps": 200}


def inverted(tab, name, folder, method="ddim", steps=3):
    """Runs the first tab on a sample image; the inversion that can be downloaded."""
    tab.set(method, steps)
    tab.upload(IMAGES / f"{name}.png")
    tab.click("Invert")
    return Inversion.load(tab.download(DONE, folder))


def test_an_image(tab, tmp_path):
    one = tab()
    found = inverted(one, "peach", tmp_path)
    own = invert(demo.load_pipeline(), demo.load_images()["peach"].image, method="ddim", num_inference_steps=3)
    assert torch.equal(found.latents, own.latents)
    slider = one.page.locator("[data-testid=imageslider], .slider-wrap, .image-container").first
    slider.wait_for()
    widths = one.page.eval_on_selector_all("img", "each => each.map(x => x.naturalWidth)")
    assert widths.count(512) >= 3  # source, reconstruction, noise
    text = one.figures()
    assert "3 for 3 steps" in text
    assert "PSNR to VAE round trip" in text
    assert one.elsewhere == []


def test_what_it_looks_like(tab, request):
    """python -m pytest -m app tests/app -k looks --picture docs/app.png"""
    path = request.config.getoption("--picture")
    if path is None:
        pytest.skip("--picture FILE writes the documentation's")
    one = tab()
    one.upload(IMAGES / "peach.png")
    one.page.get_by_label("Prompt").locator("visible=true").first.fill("noto peach")
    one.click("Invert")
    one.figures()
    one.page.wait_for_function("[...document.images].filter(x => x.naturalWidth == 512).length > 2")
    one.page.mouse.move(0, 0)
    one.page.screenshot(path=path, full_page=True)
    assert Path(path).stat().st_size < 300_000


def test_cancel(tab, tmp_path):
    """It ends the computation itself: the next one, of which there is one at a time, comes at once."""
    one = tab()
    one.set(**LONG)
    one.upload(IMAGES / "peach.png")
    one.click("Invert")
    one.page.get_by_text("inverting").first.wait_for()
    assert one.page.get_by_role("button", name="Invert", exact=True).is_disabled()
    one.click("Cancel")
    one.toast("Cancelled.")
    assert inverted(tab(), "apple", tmp_path).node == 3


@pytest.mark.parametrize("content", [b"no picture", b"\x89PNG\r\n\x1a\nbroken", b"<svg onload='document.title=1'/>"])
def test_a_bad_file(tab, tmp_path, content):
    one = tab()
    name = "<img src=x onerror=document.title=1>.png"
    one.upload({"name": name, "mimeType": "image/png", "buffer": content})
    one.click("Invert")
    said = one.toast("image").inner_text()
    assert "PNG, JPEG, WEBP" in said or "cannot be read" in said
    assert "/tmp" not in said
    assert one.page.title() == "invfast"


@pytest.mark.parametrize(("method", "message"), [("none", "unknown method"), ("auto(budget='<b>')", "must be")])
def test_a_bad_method(tab, method, message):
    one = tab()
    one.upload(IMAGES / "peach.png")
    one.set(method)
    for _ in range(2):  # it can be pressed again
        one.click("Invert")
        one.toast(message)


def test_a_bad_size_and_then_a_good_one(tab, tmp_path):
    one = tab()
    one.page.get_by_label("Size").fill("5000")
    one.click("Invert")
    one.toast("greater than maximum value 2048")
    one.page.get_by_label("Size").fill("96")
    assert inverted(one, "peach", tmp_path).latents.shape == (1, 4, 24, 24)


def test_two_tabs_at_once(tab, tmp_path):
    """Each gets its own; one's cancelling is no business of the other."""
    one, two, three = tab(), tab(), tab()
    for each, name in ((one, "peach"), (two, "apple"), (three, "owl")):
        each.set("auto", 12)
        each.upload(IMAGES / f"{name}.png")
    for each in (one, two, three):
        each.click("Invert")
    three.click("Cancel")
    found = [Inversion.load(each.download(DONE, tmp_path)) for each in (one, two)]
    three.toast("Cancelled.")
    pipe, samples = demo.load_pipeline(), demo.load_images()
    for inversion, name in zip(found, ("peach", "apple"), strict=True):
        assert torch.equal(inversion.latents, invert(pipe, samples[name].image, num_inference_steps=12).latents)


def test_a_reload_in_the_middle(tab, tmp_path):
    """What nobody waits for any more ends, and the next run works."""
    one = tab()
    one.set(**LONG)
    one.upload(IMAGES / "peach.png")
    one.click("Invert")
    one.page.get_by_text("inverting").first.wait_for()
    one.page.reload()
    one.page.get_by_role("heading", name="invfast").wait_for()
    assert inverted(one, "apple", tmp_path).node == 3


def test_the_other_tabs(tab, tmp_path):
    one = tab()
    one.set("ddim", 3)
    one.open("Compare")
    one.upload(IMAGES / "peach.png")
    one.click("Compare")
    assert "VAE round trip" in one.figures()
    assert one.download("Download the table", tmp_path).read_text().startswith("method,")
    one.open("Edit")
    one.upload(IMAGES / "peach.png")
    one.page.get_by_label("New prompt").fill("noto apple")
    one.click("Edit")
    assert "seconds of the edit" in one.figures()
    one.open("Interpolate")
    one.upload(IMAGES / "peach.png", to="First image")
    one.upload(IMAGES / "apple.png", to="Second image")
    one.click("Interpolate")
    one.page.wait_for_function("[...document.images].some(x => x.naturalWidth > 1000 && x.checkVisibility())")
    assert one.elsewhere == []


def test_saved_inversions(tab, tmp_path):
    one = tab()
    pipe, samples = demo.load_pipeline(), demo.load_images()
    paths = [tmp_path / f"{name}.safetensors" for name in ("peach", "owl")]
    for path in paths:
        invert(pipe, samples[path.stem].image, method="ddim", num_inference_steps=3).save(path)
    one.open("Analyse")
    one.upload(*paths, to="Inversions")
    one.click("Analyse")
    assert "standard deviation" in one.figures()
    assert one.download("Download the report", tmp_path).read_text().startswith("<!doctype html>")


def test_watermarks(tab, tmp_path):
    one = tab()
    one.set("ddim", 3)
    key, grey = tmp_path / "key.json", tmp_path / "grey.png"
    save_key(GaussianShading.new((4, 16, 16), copies=(1, 4, 4)), key)
    Image.new("RGB", (64, 64), "grey").save(grey)
    one.open("Watermark", "Embed")
    one.upload(key, to="Key")
    one.click("Draw")
    one.page.locator(".thumbnail-item img, .grid-wrap img").first.wait_for()
    one.open("Detect")
    one.upload(grey, to="Images")
    one.upload(key, to="Keys")
    one.click("Look for the keys")
    assert "grey.png\tnothing found" in one.figures()


def called(url, image, model="emoji64", steps=3):
    """What the server answers a client that is no browser, of the first tab's computation."""
    session = f"session{time.monotonic_ns()}"
    compute = next(j for j, each in enumerate(asked(f"{url}config")["dependencies"]) if len(each["outputs"]) == 4)
    data = [image, "", model, "ddim", steps, 0]
    asked(f"{url}gradio_api/queue/join", {"data": data, "fn_index": compute, "session_hash": session})
    with urllib.request.urlopen(f"{url}gradio_api/queue/data?session_hash={session}", timeout=60) as said:
        told = [json.loads(line[6:]) for line in said.read().decode().splitlines() if line.startswith("data: ")]
    (end,) = (each for each in told if each["msg"] == "process_completed")
    return end["output"].get("error"), end["success"]


def asked(url, data=None):
    sent = None if data is None else json.dumps(data).encode()
    request = urllib.request.Request(url, sent, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as said:
        return json.loads(said.read())


def test_a_client_that_is_no_browser(server, tmp_path):
    """It gets no file that is not its own, and makes the server ask nobody for one."""
    (tmp_path / "peach.png").write_bytes((IMAGES / "peach.png").read_bytes())
    for path in ("/etc/passwd", "../../etc/passwd", tmp_path / "peach.png", "/proc/self/environ"):
        with pytest.raises(urllib.error.HTTPError, match="403"):
            asked(f"{server}gradio_api/file={path}")
    kind = {"_type": "gradio.FileData"}
    assert called(server, {"path": str(tmp_path / "peach.png"), "meta": kind}) == (None, False)
    said, fine = called(server, {"path": "http://127.0.0.1:9/peach.png", "meta": kind})
    assert "uploaded, not named by its address" in said
    assert not fine
    for more in ({"steps": 10**9}, {"model": ["emoji64"]}, {"model": 5}):
        assert not called(server, None, **more)[1]


def test_ctrl_c_ends_it_in_the_middle(tab, tmp_path):
    with serving(tmp_path) as (url, _):
        one = tab(url)
        one.set(**LONG)
        one.upload(IMAGES / "peach.png")
        one.click("Invert")
        one.page.get_by_text("inverting").first.wait_for()


def test_a_server_for_others(tab, tmp_path):
    """It says who can use it, and loads no folder that a visitor names."""
    with serving(tmp_path, "--host", "0.0.0.0") as (url, said):
        one = tab(url)
        assert "warning: everyone who reaches 0.0.0.0" in said.read_text()
        one.set(model=str(tmp_path))
        one.upload(IMAGES / "peach.png")
        one.click("Invert")
        one.toast("it loads no folder or hub id but those it was started with")
