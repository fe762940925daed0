"""What tests of the batch engine share: a task that needs no network, folders of images, a run in a process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from invfast import batch
from invfast.batch import index, shards
from invfast.images import Frame

CODE = "from invfast.cli import main; main()"


@dataclass(frozen=True)
class Toy:
    """Noise of each image's seed on its pixels, and the size of the batch it ran in."""

    size: int | None = None
    name: str = "toy"
    slow: float = 0.0
    poison: str = ""
    """A prompt that fails with whatever ran beside it."""

    @property
    def frame(self):
        return None if self.size is None else Frame(self.size, self.size)

    def configuration(self):
        return {"task": self.name, "size": self.size}

    def memory(self):
        return 64 << 20

    def prepare(self, check):
        def run(images, prompts, seeds):
            check()
            if self.poison and self.poison in prompts:
                raise FloatingPointError(f"{self.poison} went wrong")
            time.sleep(self.slow)
            found = []
            for image, seed in zip(images, seeds, strict=True):
                pixels = torch.from_numpy(np.array(image)).float()
                noise = torch.randn(8, generator=torch.Generator().manual_seed(seed))
                kept = {"noise": noise, "mean": pixels.mean().reshape(1), "beside": torch.tensor([len(images)])}
                found.append(batch.Result(kept, {"width": image.width}, {"note": f"{seed}"}))
            return found

        return run


def picture(number: int, size=(12, 8)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))


def fill(folder: Path, count: int, bad: bool = True, sizes=((12, 8), (8, 12), (16, 16))) -> list[str]:
    """Images of several formats and sizes in two folders, and three bad files; all their names."""
    names = []
    (folder / "sub").mkdir(parents=True, exist_ok=True)
    for j in range(count):
        where, ending = folder / "sub" if j % 4 == 1 else folder, ("png", "jpg", "webp")[j % 3]
        path = where / f"{j // 2 * 2:04d}.{ending}" if j % 4 < 2 else where / f"{j:04d}.{ending}"
        picture(j, sizes[j % len(sizes)]).save(path)
        names.append(path.relative_to(folder).as_posix())
    if bad:
        (folder / "empty.png").write_bytes(b"")
        (folder / "text.jpg").write_text("no image")
        picture(0, (40, 40)).save(folder / "sub" / "cut.png")
        content = (folder / "sub" / "cut.png").read_bytes()
        (folder / "sub" / "cut.png").write_bytes(content[: len(content) // 2])
        names += ["empty.png", "text.jpg", "sub/cut.png"]
    return sorted(names)


BAD = {"empty.png", "text.jpg", "sub/cut.png"}


def contents(folder: Path) -> dict[str, tuple]:
    """Everything that was found by name, but how long it took."""
    found = {}
    for name, row in index.read(folder).names.items():
        kept = None if row["error"] else shards.read(folder, row["file"], row["row"])
        if kept is not None and "json" in kept[1]:
            says = json.loads(kept[1]["json"])
            says["stats"].pop("seconds")
            kept = kept[0], says
        found[name] = ({key: row[key] for key in ("id", "prompt", "error", "stats")}, kept)
    return found


def same(a: dict, b: dict) -> bool:
    """Whether two folders' contents are the same, bit for bit."""
    from invfast import plain

    return a.keys() == b.keys() and all(plain.same(a[name], b[name]) for name in a)


def start(*args, cwd, code=CODE, stdin=None) -> subprocess.Popen:
    command = [sys.executable, "-c", code, *map(str, args)]
    env = {**os.environ, "NO_COLOR": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "1000"}
    env["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), env.get("PYTHONPATH", "")])
    pipe = subprocess.PIPE
    log = None if stdin else pipe  # of what goes on, a full pipe would stop it
    return subprocess.Popen(command, cwd=cwd, env=env, stdin=stdin, stdout=pipe, stderr=log, text=True)


FORK = """
import json, os, sys
import diffusers, torch, transformers
from invfast import api, batch, demo
from invfast.cli import main
demo.load_pipeline()
print("ready", flush=True)
for line in sys.stdin:
    args, out, log = json.loads(line)
    pid = os.fork()
    if not pid:
        for name, number in ((os.devnull, 0), (out, 1), (log, 2)):
            os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
        sys.argv = ["invfast", *args]
        main()
        os._exit(0)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Forks:
    """Commands as processes of their own, one after the other, forked where all is imported: real kills, cheaply."""

    def __init__(self, cwd: Path) -> None:
        self.cwd, self.out, self.log = cwd, cwd / "stdout", cwd / "stderr"
        self.server = start(cwd=cwd, code=FORK, stdin=subprocess.PIPE)
        assert self._line() == "ready"

    def _line(self) -> str:
        return self.server.stdout.readline().strip()

    def start(self, *args) -> int:
        self.server.stdin.write(json.dumps([list(map(str, args)), str(self.out), str(self.log)]) + "\n")
        self.server.stdin.flush()
        return int(self._line())

    def finish(self) -> tuple[int, str, str]:
        return int(self._line()), self.out.read_text(), self.log.read_text()

    def close(self) -> None:
        self.server.stdin.close()
        self.server.wait()
