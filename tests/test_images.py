"""Reading images, drawing grids."""

import importlib.util
import io
import os
import random
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from invfast import images


def test_pixels_of_known_colours():
    red = Image.new("RGB", (8, 8), (255, 0, 0))
    pixels = images.to_pixels(red, 8)
    assert pixels.shape == (1, 3, 8, 8)
    assert pixels[0, :, 0, 0].tolist() == [1, -1, -1]


def test_transparent_pixels_are_white():
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    assert images.to_pixels(clear, 8).min() == 1
    assert images.to_pixels(np.asarray(clear), 8).min() == 1
    half = np.zeros((8, 8, 4), np.float32)
    half[..., 3] = 0.5
    assert images.to_pixels(half, 8).abs().max() < 1e-6
    palette = Image.new("P", (8, 8), 0)
    palette.info["transparency"] = 0
    assert images.to_pixels(palette, 8).min() == 1


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "I", "F", "I;16"])
def test_every_pil_mode(mode):
    grey = Image.new("L", (8, 8), 128)
    values = np.full((8, 8), 128 * 257)
    made = {
        "I": lambda: Image.fromarray(values.astype(np.int32)),
        "F": lambda: Image.fromarray(np.full((8, 8), 128.0, np.float32)),
        "I;16": lambda: Image.fromarray(values.astype(np.uint16)),
        "1": lambda: Image.new("1", (8, 8), 1),
        "LAB": lambda: Image.new("LAB", (8, 8)),
        "HSV": lambda: Image.new("RGB", (8, 8), (128, 128, 128)).convert("HSV"),
    }.get(mode, lambda: grey.convert("RGB").convert(mode) if mode not in ("L", "LA", "P") else grey.convert(mode))()
    rgb = images.as_rgb(made)
    assert rgb.mode == "RGB"
    if mode not in ("1", "LAB"):
        assert all(abs(v - 128) <= 2 for v in rgb.getpixel((3, 3)))


def test_exif_orientation(tmp_path):
    wide = Image.new("RGB", (32, 16), "white")
    exif = wide.getexif()
    exif[0x0112] = 6
    wide.save(tmp_path / "turned.jpg", exif=exif)
    assert images.load(tmp_path / "turned.jpg").size == (16, 32)
    assert images.as_rgb(Image.open(tmp_path / "turned.jpg")).size == (16, 32)


def test_kinds_agree():
    array = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    wanted = images.to_pixels(Image.fromarray(array), 8)
    tensor = torch.tensor(array).permute(2, 0, 1)
    for image in (array, array / 255.0, tensor, tensor / 255, tensor[None] / 127.5 - 1, [array, array]):
        assert (images.to_pixels(image, 8) - wanted).abs().max() < 1e-5
    assert images.to_pixels(array[..., 0], 8).shape == (1, 3, 16, 24)
    assert images.to_pixels(array[None].repeat(3, 0), 8).shape == (3, 3, 16, 24)


def test_every_kind_is_resized_by_the_same_filter():
    array = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    wanted = images.to_pixels(Image.fromarray(array), 8, 16, 16)
    tensor = torch.tensor(array).permute(2, 0, 1)
    for image in (array[None], array / 255.0, tensor, tensor[None], tensor / 255, tensor / 127.5 - 1):
        assert (images.to_pixels(image, 8, 16, 16) - wanted).abs().max() < 1.01 / 127.5


def test_a_hair_below_zero_is_still_zero_to_one():
    image = torch.rand(3, 8, 8)
    image[0, 0, 0] = -1e-6
    assert (images.to_pixels(image, 8)[0] - (2 * image - 1).clamp(-1)).abs().max() < 1e-5
    dark, bright = 2 * torch.rand(3, 8, 8) - 1, torch.rand(3, 8, 8)
    together = images.to_pixels([dark, bright], 8)  # one range for the whole call
    assert (together[0] - dark).abs().max() < 1e-6
    assert (together[1] - bright).abs().max() < 1e-6


def test_deep_greys_are_not_black():
    for value, mode in ((255, "I"), (255, "F")):
        assert images.as_rgb(Image.new("L", (8, 8), value).convert(mode)).getpixel((0, 0)) == (255,) * 3
    assert images.as_rgb(Image.fromarray(np.full((8, 8), 1.0, np.float32))).getpixel((0, 0)) == (255,) * 3
    assert images.as_rgb(Image.fromarray(np.full((8, 8), 65535, np.uint16))).getpixel((0, 0)) == (255,) * 3


def test_sizes_follow_the_factor():
    image = Image.new("RGB", (31, 17))
    assert images.to_pixels(image, 8).shape == (1, 3, 16, 24)
    assert images.to_pixels(image, 4).shape == (1, 3, 16, 28)
    assert images.to_pixels(Image.new("RGB", (1, 1)), 8).shape == (1, 3, 8, 8)
    assert images.to_pixels([image, Image.new("L", (9, 9))], 8, 24, 8).shape == (2, 3, 24, 8)


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        ([], ValueError, "the list is empty"),
        (None, TypeError, "got NoneType"),
        ([Image.new("RGB", (8, 8)), Image.new("RGB", (8, 16))], ValueError, "different sizes"),
        (np.zeros((0, 8, 3), np.uint8), ValueError, "no pixels"),
        (torch.zeros(3, 0, 8), ValueError, "no pixels"),
        (np.full((8, 8, 3), np.nan), ValueError, "non-finite pixels"),
        (np.full((8, 8, 3), np.inf), ValueError, "non-finite pixels"),
        (np.full((8, 8, 3), 200.0), ValueError, r"lie in \[0, 1\] or \[-1, 1\]; got 200 to 200"),
        (np.zeros((8, 8, 3), np.int32), ValueError, "must be uint8"),
        (np.zeros(8), ValueError, "needs shape"),
        (torch.zeros(8, 8), ValueError, "needs shape"),
        (torch.zeros(2, 8, 8), ValueError, "1, 3 or 4"),
        (np.zeros((8, 8, 5), np.uint8), ValueError, "1, 3 or 4"),
        (torch.randn(4, 8, 8), ValueError, r"latents need a batch, \(B, 4, h, w\)"),
    ],
)
def test_refusals(image, error, message):
    with pytest.raises(error, match=message):
        images.to_pixels(image, 8)


def test_bad_files(tmp_path):
    path = tmp_path / "picture.png"
    with pytest.raises(FileNotFoundError, match="does not exist"):
        images.load(path)
    for content in (b"", b"not an image"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is not one of PNG, JPEG, WEBP"):
            images.load(path)
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(ValueError, match="cannot be read"):
        images.load(path)
    Image.new("RGB", (8, 8)).save(tmp_path / "picture.ico")
    with pytest.raises(ValueError, match="is not one of"):
        images.load(tmp_path / "picture.ico")


@pytest.mark.parametrize("ending", [each for each in images.ENDINGS if each not in images.FORMATS["HEIF"]])
def test_every_format_is_read(ending, tmp_path):
    picture = Image.effect_noise((24, 16), 50).filter(ImageFilter.GaussianBlur(4)).convert("RGB")
    picture.save(tmp_path / f"picture{ending}")
    found = images.load(tmp_path / f"picture{ending}")
    assert (found.size, found.mode) == ((24, 16), "RGB")
    assert np.abs(np.asarray(found, float) - np.asarray(picture, float)).mean() < 4
    content = (tmp_path / f"picture{ending}").read_bytes()
    assert images.size_of(content, "it") == (24, 16)
    with pytest.raises(ValueError, match="image 'it' "):
        images.decode(content[: len(content) // 2], "it")
    wide = Image.new("1", (2**14, 2**13))  # of few bytes
    if ending in (".bmp", ".gif", ".tif"):
        wide.save(tmp_path / f"wide{ending}")
        with pytest.raises(ValueError, match="too large"):
            images.load(tmp_path / f"wide{ending}")


def test_heic_is_read_or_its_extra_named(tmp_path):
    pillow_heif = importlib.import_module("pillow_heif") if importlib.util.find_spec("pillow_heif") else None
    path = tmp_path / "picture.heic"
    path.write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    with pytest.raises(ValueError, match="picture.heic" if pillow_heif else r"pip install .invfast\[heic\]"):
        images.load(path)
    if pillow_heif:
        picture = Image.linear_gradient("L").resize((64, 48)).convert("RGB")
        pillow_heif.from_pillow(picture).save(path)
        assert images.load(path).size == images.size_of(path.read_bytes(), "it") == (64, 48)


def test_of_several_frames_the_first_is_taken(tmp_path, caplog):
    red, blue = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
    for ending in (".gif", ".tif", ".webp", ".png", ".avif"):
        red.save(tmp_path / f"two{ending}", save_all=True, append_images=[blue])
        found = images.load(tmp_path / f"two{ending}")
        assert np.abs(np.asarray(found, float) - np.asarray(red, float)).max() < 12, ending
        assert f"two{ending}' has 2 frames; the first is taken" in caplog.text
    caplog.clear()
    red.save(tmp_path / "one.gif")
    images.load(tmp_path / "one.gif")
    assert not caplog.text


def test_what_other_formats_hold(tmp_path):
    deep = np.full((8, 8), 300 * 128, np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.tif")
    assert np.asarray(images.load(tmp_path / "deep.tif")).mean() == round(300 * 128 / 257)
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "ink.tif")
    red = np.asarray(images.load(tmp_path / "ink.tif"))[0, 0]
    assert red[0] > 200 > 60 > red[1:].max()
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    for ending in (".gif", ".tif", ".avif", ".bmp"):
        clear.save(tmp_path / f"clear{ending}")
        white = np.asarray(images.load(tmp_path / f"clear{ending}"))
        assert white.min() > 250 or ending == ".bmp", ending  # Pillow's BMP has no transparency by itself


def test_a_frame():
    picture = Image.new("RGB", (40, 20), "red")
    picture.paste("blue", (5, 0, 35, 20))
    cropped, padded, squashed = (np.asarray(images.Frame(16, 16, fit)(picture)) for fit in images.FITS)
    assert (cropped == (0, 0, 255)).all()
    assert (padded[:4] == 255).all()
    assert (padded[-4:] == 255).all()
    assert padded[8, 0, 0] > 250 > 5 > padded[8, 0, 1:].max()
    wanted = images.to_pixels(picture, 8, 16, 16)
    assert torch.equal(images.to_pixels(Image.fromarray(squashed), 8), wanted)
    assert images.Frame(40, 20, "pad")(picture) is picture
    assert images.Frame(8, 8, "pad")(Image.new("RGB", (2000, 2))).size == (8, 8)
    assert images.Frame(8, 24)(picture).size == (8, 24)
    for wrong, message in (
        ((0, 8), "at least 1 x 1, got 0 x 8"),
        ((60000, 60000), "pixels at most, got 60000 x 60000"),
        ((8, 8, "fill"), "unknown fit 'fill'; expected one"),
    ):
        with pytest.raises(ValueError, match=message):
            images.Frame(*wrong)


def encoded(kind, **options):
    array = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    content, picture = io.BytesIO(), Image.fromarray(array)
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(content, kind, exif=exif, **options)
    return content.getvalue()


def with_checksums(content):
    """A PNG whose chunks say that they are whole."""
    fixed, at = bytearray(content), 8
    while at + 12 <= len(fixed):
        end = at + 8 + int.from_bytes(fixed[at : at + 4], "big")
        fixed[end : end + 4] = zlib.crc32(fixed[at + 4 : end]).to_bytes(4, "big")[: max(0, len(fixed) - end)]
        at = end + 4
    return bytes(fixed)


def short_header():
    """A PNG whose header chunk is cut: ValueError deep inside Pillow."""
    good = encoded("PNG")
    return with_checksums(good[:8] + (5).to_bytes(4, "big") + good[12:21] + b"\0" * 4 + good[33:])


def bad_chunk():
    """A chunk in the middle of a PNG whose name is no name: SyntaxError."""
    return encoded("PNG").replace(b"IDAT", b"ID\xff\x01", 1)


def bad_exif(kind):
    """EXIF that is no TIFF: SyntaxError; read when the orientation is asked for."""
    good = encoded(kind)
    at = max(good.find(b"II*\0"), good.find(b"MM\0*"))
    return good[:at] + b"\x83M\0*" + good[at + 4 :]


BROKEN = {
    "header": short_header,
    "chunk": bad_chunk,
    "exif webp": lambda: bad_exif("WEBP"),
    "cut png": lambda: encoded("PNG")[:200],
    "cut jpeg": lambda: encoded("JPEG")[:600],
    "cut webp": lambda: encoded("WEBP")[:200],
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_images_end_in_one_error(name, tmp_path):
    """Also those that a caller opened, which are decoded only when they are used."""
    path = tmp_path / "picture"
    path.write_bytes(BROKEN[name]())
    with pytest.raises(ValueError, match=r"picture' (cannot be read: |is not one of)"):
        images.load(path)
    try:
        opened = Image.open(path)
    except Exception:
        return  # broken at the first look, before we see it
    with pytest.raises(ValueError, match="the PIL image cannot be read: "):
        images.to_pixels(opened, 8)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_corrupted_images(kind, tmp_path):
    """A picture or the one error, whatever the decoder stumbles over."""
    rng, good, path, raised = random.Random(18), encoded(kind), tmp_path / "picture", 0
    for _ in range(150):
        content = bytearray(good)
        for _ in range(rng.choice((1, 1, 3))):
            at = rng.randrange(len(content) if rng.random() < 0.5 else 200)
            content[at] = rng.choice((content[at] ^ 1 << rng.randrange(8), 0, 255))
        content = content[: rng.randrange(len(good))] if rng.random() < 0.3 else content
        path.write_bytes(with_checksums(content) if kind == "PNG" and rng.random() < 0.7 else content)
        try:
            assert images.load(path).mode == "RGB"
        except ValueError as error:
            raised += 1
            assert "picture'" in str(error)  # noqa: PT017
    assert raised > 30


def test_a_folder_or_a_pipe_is_no_image(tmp_path):
    with pytest.raises(ValueError, match="cannot be read: it is a folder"):
        images.load(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")  # opening it would wait for ever
        with pytest.raises(ValueError, match="no file"):
            images.load(tmp_path / "pipe")


@pytest.mark.parametrize(("owner", "limit"), [(Image, "MAX_IMAGE_PIXELS"), (images, "MAX_PIXELS")])
def test_too_many_pixels(owner, limit, tmp_path, monkeypatch):
    Image.new("L", (64, 64)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(owner, limit, 4000)
    with pytest.raises(ValueError, match="too large"):
        images.load(tmp_path / "bomb.png")


def test_latents_as_pictures():
    (picture,) = images.latents_to_pil(torch.tensor([-9.0, 0.0, 9.0, 5.0]).reshape(1, 4, 1, 1))
    assert picture.getpixel((0, 0)) == (0, 128, 255)
