"""`invfast batch` with the bundled network: what it prints, its exit codes, and what a kill leaves."""

import contextlib
import json
import os
import random
import signal
import time

import pytest
import torch
from batches import BAD, Forks, contents, fill, picture, same, start
from test_cli import inside, result

from benchmarks import batch as engine
from invfast import batch, demo, invert, reconstruct, watermark

QUICK = ("--method", "ddim", "--steps", 2)
TOY = "from batches import Toy; from invfast import batch; batch.Invert = lambda *given, **more: Toy(slow={slow})\n"
"""A run of the command line with a task that needs no network."""
MAIN = "from invfast.cli import main; main()"


def finish(process, seconds=240):
    out, log = process.communicate(timeout=seconds)
    return process.returncode, out, log


def test_inversions_are_those_of_invert(pipe, tmp_path):
    """Drawn noise is each image's own; what is found leads back."""
    (tmp_path / "in").mkdir()
    for name in ("peach", "house", "tulip"):
        demo.load_images()[name].image.save(tmp_path / "in" / f"{name}.png")
    task = batch.Invert(method="forward_start(1, ddim)", steps=3, device="cpu")
    batch.run(tmp_path / "in", tmp_path / "out", task, prompts={"peach.png": "noto peach"}, batch=2)
    results = batch.open(tmp_path / "out")
    assert list(results) == ["house.png", "peach.png", "tulip.png"]
    found = results["peach.png"]
    assert found.prompt == ["noto peach"]
    assert results[results.rows["peach.png"]["id"]] == found
    seed = int(results.rows["peach.png"]["id"][:16], 16) >> 1
    options = {"method": found.method, "num_inference_steps": 3, "generator": torch.Generator().manual_seed(seed)}
    alone = invert(pipe, tmp_path / "in" / "peach.png", "noto peach", **options)
    assert (found.latents - alone.latents).norm() < 1e-4 * alone.latents.norm()
    assert (found.latents - results["house.png"].latents).norm() > 0.1 * alone.latents.norm()
    assert reconstruct(pipe, found).images[0].size == (64, 64)
    assert results.rows["peach.png"]["stats"]["evaluations"] == alone.stats.evaluations[0]


def test_keys_are_looked_for(pipe, tmp_path):
    """Rows say what `detect` says of each image; no secret and no latents are written."""
    shape, steps = watermark.shape_of(pipe), 5
    keys = [watermark.TreeRing.new(shape, radius=6), watermark.GaussianShading.new(shape, copies=(1, 4, 4))]
    for j, key in enumerate(keys):
        watermark.save_key(key, tmp_path / f"{j}.json")
    (tmp_path / "in").mkdir()
    made = watermark.sample(pipe, keys[1].embed(2, torch.Generator().manual_seed(0)), num_inference_steps=steps).images
    for name, image in zip(("a.png", "b.png"), made, strict=True):
        image.save(tmp_path / "in" / name)
    picture(1, (96, 96)).save(tmp_path / "in" / "other.png")
    named = [word for j in range(2) for word in ("--key", f"{j}.json")]
    done = inside(
        "batch", "in", "-o", "out", *named, "--method", "ddim", "--steps", steps, "--device", "cpu", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    rows = batch.open(tmp_path / "out").rows
    found = watermark.detect(pipe, tmp_path / "in" / "b.png", keys, method="ddim", num_inference_steps=steps)
    (score,), stats = found.scores, rows["b.png"]["stats"]
    assert stats["p_value"] == pytest.approx(score.p_value, rel=0.01)
    assert stats["bits"] == score.bits
    assert stats["key"] == watermark.fingerprint_of(keys[1])
    assert stats["evaluations"] == steps
    assert rows["a.png"]["stats"]["p_value"] < 1e-6 < 1e-3 < rows["other.png"]["stats"]["p_value"]
    written = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert all(key.secret.encode() not in written for key in keys)
    assert max(path.stat().st_size for path in (tmp_path / "out" / "shards").iterdir()) < 4096


@pytest.mark.parametrize("keys", [(), ("key.json",)])
def test_what_is_no_key(keys):
    with pytest.raises(TypeError, match=r"keys must be a watermark\.Key"):
        batch.Detect(keys)


def test_a_damaged_result_is_named(tmp_path):
    (tmp_path / "in").mkdir()
    picture(1, (64, 64)).save(tmp_path / "in" / "a.png")
    batch.run(tmp_path / "in", tmp_path / "out", batch.Invert(method="ddim", steps=1, device="cpu"))
    (path,) = (tmp_path / "out" / "shards").iterdir()
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"inversion of 'a\.png' in .*damaged"):
        batch.open(tmp_path / "out")["a.png"]


def test_the_command(tmp_path):
    names = fill(tmp_path / "in", 5, sizes=((64, 64),))
    args = ("batch", "in", "-o", "out", "--recursive", *QUICK)
    done = inside(*args, "--json", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    report = result_of(done)
    assert (report["images"], report["before"], report["done"]) == (8, 0, 5)
    assert {each["image"] for each in report["failed"]} == BAD
    assert "5 of 8 images are done, 5 in this run; 3 failed" in done.stderr
    assert sorted(batch.open(tmp_path / "out").rows) == names
    for name in BAD:
        (tmp_path / "in" / name).unlink()
    done = inside(*args, "--json", cwd=tmp_path)
    assert result(done)["before"] == 5  # exit code 0
    assert inside(*args, cwd=tmp_path).stdout.split() == [report["index"]]


def result_of(done):
    done.returncode = 0
    return result(done)


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["none"], 2, "'none' does not exist"),
        (["in", "--shard", "4/3"], 2, "a shard is 1/3 to 3/3, got 4/3"),
        (["in", "--shard", "x"], 2, "a shard is written as 3/10"),
        (["in", "--on-error", "pray"], 2, "'pray' is not one of"),
        (["in", "--engine", "steam"], 2, "'steam' is not one of"),
        (["in", "--batch", "0"], 2, "greater than or equal to 1"),
        (["in", "--actors", "2"], 2, "are of --engine ray"),
        (["in", "--prompts", "none.jsonl"], 2, "does not exist"),
        (["in", "--method", "magic"], 1, "unknown method 'magic'"),
        (["in", "--on-error", "stop"], 1, "image 'empty.png' is not one of"),
        (["in", "--size", "0"], 2, "as 512, or width and height, as 640x512"),
        (["in", "--size", "63"], 1, "height must be a positive multiple of 4, got 63"),
        (["in", "--dtype", "int4"], 1, "unknown dtype 'int4'"),
    ],
)
def test_errors(args, code, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "1000")
    fill(tmp_path / "in", 8)
    done = inside("batch", *args, "-o", "out", cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert message in " ".join(done.stderr.split())
    assert done.stdout == ""
    assert not (tmp_path / "out").exists() or not batch.open("out")


SLOW = pytest.mark.slow


@pytest.mark.parametrize("name", ["SIGTERM", pytest.param("SIGINT", marks=SLOW), pytest.param("SIGHUP", marks=SLOW)])
def test_signals_end_it_cleanly(name, tmp_path):
    fill(tmp_path / "in", 60, bad=False)
    process = start("batch", "in", "-o", "out", "--batch", 2, cwd=tmp_path, code=TOY.format(slow=0.05) + MAIN)
    wait_for(tmp_path / "out", 2, process)
    process.send_signal(getattr(signal, name))
    code, out, log = finish(process)
    assert code == 130, log
    done = len(batch.open(tmp_path / "out"))
    assert f"{done} of 45 images are done; the same command goes on from there" in log
    assert out == ""
    assert not list((tmp_path / "out" / "shards").glob(".*"))
    assert list((tmp_path / "out").glob("index.*"))


def wait_for(folder, count, process):
    """Until so many shards are there."""
    while len(list((folder / "shards").glob("*.safetensors"))) < count:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def test_the_benchmark_counts_the_network_within_the_call(tmp_path):
    engine.fill(tmp_path, 3)
    found = engine.measure(tmp_path, "ddim", count=3, steps=1)
    assert 0 < found["network"] < found["invert"] < found["whole"]
    row = engine.row("ddim", [found], 3, 1)
    assert 0 < row["behind"] < 1
    assert f"| `ddim` | {3 / found['whole']:.2f} | {3 / found['network']:.2f} |" in engine.table([row])


@pytest.mark.slow
def test_nohup_outlives_its_terminal(tmp_path):
    """A SIGHUP that was ignored from the start stays ignored, and lines say how far it is."""
    fill(tmp_path / "in", 30, bad=False)
    code = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + TOY.format(slow=0.1)
    code += "from invfast.cli import terminal; terminal.EVERY = 0.2\n" + MAIN
    process = start("batch", "in", "-o", "out", "--batch", 1, cwd=tmp_path, code=code)
    wait_for(tmp_path / "out", 2, process)
    process.send_signal(signal.SIGHUP)
    code, _, log = finish(process)
    assert code == 0, log
    assert "a second, 0 min left" in log


@pytest.fixture
def forks(tmp_path):
    server = Forks(tmp_path)
    yield server
    server.close()


def count(folder):
    return len(list((folder / "shards").glob("*.safetensors")))


@pytest.mark.slow
def test_the_walk_through(forks, tmp_path):
    """300 images, three of them bad: Ctrl-C, twenty kills at random moments, two shards at once, all of it there."""
    names = fill(tmp_path / "in", 297, sizes=((64, 64), (64, 48), (48, 64)))
    asked = (
        "batch",
        "in",
        "--recursive",
        "--method",
        "warm_start",
        "--steps",
        2,
        "--batch",
        4,
        "--size",
        "own",
        "--json",
    )
    forks.start(*asked, "-o", "whole")
    code, out, log = forks.finish()
    assert code == 1, log
    assert json.loads(out)["done"] == 297
    whole, shards = contents(tmp_path / "whole"), count(tmp_path / "whole")

    pid = forks.start(*asked, "-o", "out")
    wait_for(tmp_path / "out", 2, forks.server)
    os.kill(pid, signal.SIGINT)
    code, _, log = forks.finish()
    assert code == 130, log
    assert "of 300 images are done; the same command goes on from there" in log

    rng = random.Random(23530)
    for _ in range(20):  # somewhere in the second or third shard from where it was
        there = count(tmp_path / "out")
        pid = forks.start(*asked, "-o", "out")
        if there < shards - 3:
            wait_for(tmp_path / "out", there + 1, forks.server)
        time.sleep(rng.uniform(0, 0.6))
        os.kill(pid, signal.SIGKILL)
        assert forks.finish()[0] == -signal.SIGKILL
    assert 20 < count(tmp_path / "out") < shards
    forks.start(*asked, "-o", "out")
    code, out, log = forks.finish()
    assert code == 1, log
    report = json.loads(out)
    assert (report["before"] + report["done"], len(report["failed"])) == (297, 3)
    assert sorted(batch.open(tmp_path / "out").rows) == names
    assert same(contents(tmp_path / "out"), whole)

    parts = [start(*asked, "-o", "parts", "--shard", f"{part}/2", cwd=tmp_path) for part in (1, 2)]
    found = [finish(process, 1200) for process in parts]
    reports = [json.loads(out) for _, out, _ in found]
    assert sum(each["done"] for each in reports) == 297
    assert sum(len(each["failed"]) for each in reports) == 3
    assert [code for code, _, _ in found] == [bool(each["failed"]) for each in reports]
    assert sorted(batch.open(tmp_path / "parts").rows) == names
    far = [name for name, (_, kept) in contents(tmp_path / "parts").items() if kept and not near(kept, whole[name][1])]
    assert not far  # other batches: the same to rounding


def near(a, b):
    x, y = a[0]["latents"], b[0]["latents"]
    return bool((x - y).norm() < 1e-4 * y.norm())


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads a process's memory from /proc")
def test_ten_thousand_images_in_flat_memory(tmp_path):
    """The last nine tenths take no more memory than the first, but for what is known of each image."""
    fill(tmp_path / "in", 10_000, bad=False)
    code = TOY.format(slow=0) + (
        "import atexit, sys; from invfast.batch import running\n"
        "now = lambda: int(open('/proc/self/statm').read().split()[1]) / 256\n"  # pages of 4 KiB, as MiB
        "take, marks = running._Book.done, []\n"
        "def done(self, rows):\n    take(self, rows)\n    marks.append((self.at.done, now()))\n"
        "running._Book.done = done\n"
        "atexit.register(lambda: print(*next(m for m in marks if m[0] > 1000), *marks[-1], file=sys.stderr))\n"
    )
    process = start("batch", "in", "-o", "out", "--recursive", "--size", 16, cwd=tmp_path, code=code + MAIN)
    code, _, log = finish(process, 3000)
    assert code == 0, log
    _, early, count, late = map(float, log.strip().splitlines()[-1].split())
    assert count == 10_000
    print(f"{early:.0f} MiB after a tenth, {late:.0f} after all")
    assert late - early < 60
    assert len(batch.open(tmp_path / "out")) == 10_000


@pytest.mark.slow
def test_ray_with_an_actor_that_is_killed(tmp_path):
    """Two actors, one killed while it works: the same bits as in one process, and parquet in and out."""
    pytest.importorskip("ray")
    names = fill(tmp_path / "in", 40)
    toy = "import batches; from invfast import batch; batch.Invert = lambda *given, **more: batches.Toy(slow={slow})\n"
    code = toy + MAIN
    args = ("batch", "in", "--recursive", "--batch", 4, "--json")
    process = start(*args, "-o", "out", "--engine", "ray", "--actors", 2, cwd=tmp_path, code=code.format(slow=2))
    wait_for(tmp_path / "out", 2, process)
    killed = kill_an_actor(process.pid)
    status, out, log = finish(process, 280)
    assert killed
    assert status == 1, log
    assert json.loads(out)["done"] == 40
    assert finish(start(*args, "-o", "whole", cwd=tmp_path, code=code.format(slow=0)))[0] == 1
    assert same(contents(tmp_path / "out"), contents(tmp_path / "whole"))
    assert sorted(batch.open(tmp_path / "out").rows) == names
    assert (tmp_path / "out" / "index.parquet").is_file()
    assert not (tmp_path / "out" / "chunks.parquet").exists()


def kill_an_actor(pid):
    """Kills one of the workers among the processes that `pid` started."""
    import psutil

    for process in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "MapWorker" in " ".join(process.cmdline()):
                process.kill()
                return True
    return False
