"""Training pictures: emoji with their names and photographs, out of packages of the registries, and batches of them.

Everything random is a function of (seed, step), so a resumed run sees what the uninterrupted one would have seen.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from invfast.images import load
from training.fetch import debian_package, npm_package

HELD_OUT = Path(__file__).with_name("held_out.txt")
VENDORS = {"google": "noto", "twitter": "twemoji"}
EMOJI_VERSION = "16.0.0"
PHOTO_SIDE = 320  # the shorter one, after shrinking
# What scikit-image ships and a caption can name; astronaut, cat and coffee are the bundled samples' sources.
SKIMAGE = {
    "astronaut": "astronaut.png",
    "cat": "chelsea.png",
    "coffee": "coffee.png",
    "rocket": "rocket.jpg",
    "motorcycle": "motorcycle_left.png",
    "galaxies": "hubble_deep_field.jpg",
    "grass": "grass.png",
    "gravel": "gravel.png",
    "brick": "brick.png",
}
# The photographs among the wallpapers; the others are drawings.
PLASMA = ["Autumn", "BytheWater", "ColdRipple", "ColorfulCups", "DarkestHour", "EveningGlow", "FallenLeaf"]
PLASMA += ["Grey", "OneStandsOut", "PastelHills", "Path", "summer_1am"]

PERSON = {"1F468": "1F9D1", "1F469": "1F9D1"}  # man and woman -> person
VARIATION = {"200D", "FE0F", "2640", "2642", *(f"1F3F{c}" for c in "BCDEF"), *(f"1F9B{c}" for c in "0123")}


@dataclass(frozen=True)
class Emoji:
    """(64, 64, 4) uint8 with straight alpha, the caption, and what it shows whatever the vendor, skin or gender."""

    pixels: np.ndarray
    caption: str
    base: str


@dataclass(frozen=True)
class Photo:
    """(h, w, 3) uint8 with a shorter side of at most 320, and its caption."""

    pixels: np.ndarray
    caption: str


@dataclass(frozen=True)
class Data:
    """Pictures to train on, pictures never trained on, and a digest of all of them."""

    emoji: list[Emoji]
    photos: list[Photo]
    held_emoji: list[Emoji]
    held_photos: list[Photo]

    @property
    def captions(self) -> list[str]:
        """Every caption, sorted; the vocabulary is made of them, those of held-out emoji included."""
        return sorted({item.caption for item in [*self.emoji, *self.photos, *self.held_emoji]})

    def digest(self) -> str:
        """SHA-256 over captions and pixels."""
        sha = hashlib.sha256()
        for items in (self.emoji, self.photos, self.held_emoji, self.held_photos):
            for item in items:
                sha.update(f"{item.caption}{item.pixels.shape}".encode())
                sha.update(np.ascontiguousarray(item.pixels))
        return sha.hexdigest()


def fetch(folder: Path) -> Data:
    """The real data; packages are downloaded into `folder` once.

    Raises:
        RuntimeError: a package cannot be had.
        ImportError: scikit-image or scikit-learn is not installed.
    """
    held = {line.split()[0] for line in HELD_OUT.read_text().splitlines()}
    emoji: list[Emoji] = []
    for vendor, word in VENDORS.items():
        emoji += _emoji(npm_package(f"emoji-datasource-{vendor}", EMOJI_VERSION, folder), vendor, word)
    return Data(
        [item for item in emoji if item.base not in held],
        _photographs(folder),
        [item for item in emoji if item.base in held],
        _held_photographs(),
    )


def base_of(unified: str) -> str:
    """An emoji's code points without joiners, presentation, skin, hair and gender.

    Example: "1F3C3-200D-2640-FE0F" (woman running) -> "1F3C3".
    """
    left = [PERSON.get(code, code) for code in unified.split("-") if code not in VARIATION]
    return "-".join(left)


def _emoji(package: Path, vendor: str, word: str) -> list[Emoji]:
    found = []
    for entry in json.loads((package / "emoji.json").read_text()):
        if not entry[f"has_img_{vendor}"] or entry["subcategory"] in {"country-flag", "subdivision-flag"}:
            continue
        with Image.open(package / "img" / vendor / "64" / entry["image"]) as image:
            pixels = np.asarray(image.convert("RGBA"))
        caption = f"{word} {' '.join(words(entry['name']))}"
        found.append(Emoji(pixels, caption, base_of(entry["unified"])))
    return found


def words(text: str) -> list[str]:
    """Lower-case words of a caption, split as the tokenizer splits them."""
    return [word for word in re.split(r"[^a-z0-9_]+", text.lower()) if word]


def _photographs(folder: Path) -> list[Photo]:
    import skimage

    source = Path(skimage.__file__).parent / "data"
    found = [_photo(source / file, f"photo {name}") for name, file in SKIMAGE.items()]
    mate = debian_package("mate-backgrounds", folder) / "usr/share/backgrounds/mate/nature"
    found += [_photo(path, f"photo {path.stem.lower()}") for path in sorted(mate.glob("*.jpg"))]
    plasma = debian_package("plasma-workspace-wallpapers", folder) / "usr/share/wallpapers"
    for name in PLASMA:
        path = min((plasma / name / "contents/images").glob("*.jpg"))  # all sizes are of one picture
        found.append(_photo(path, f"photo {name.lower()}"))
    return found


def _held_photographs() -> list[Photo]:
    import sklearn

    source = Path(sklearn.__file__).parent / "datasets/images"
    return [_photo(source / f"{name}.jpg", f"photo {name}") for name in ("china", "flower")]


def _photo(path: Path, caption: str) -> Photo:
    image = load(path)
    scale = PHOTO_SIDE / min(image.size)
    if scale < 1:
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
    return Photo(np.asarray(image), caption)
