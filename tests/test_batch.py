"""The batch engine with a task that needs no network: plans, resuming, errors, sources, the index."""

import errno
import io
import json
import os
import pickle
import random
import shutil
import sys

import numpy as np
import pytest
import torch
from batches import BAD, Toy, contents, fill, picture, same
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from invfast import batch, images
from invfast.batch import index, local, parquet, plan, shards, source, worker
from invfast.batch.plan import Item, Share
from invfast.batch.source import Entry
from invfast.batch.worker import Worker
from invfast.files import write_atomically


class Killed(BaseException):
    """Stands in for SIGKILL between two lines of Python."""


def run(root, folder, task=None, **options):
    return batch.run(root, folder, task or Toy(), recursive=True, batch=4, **options)


def item(number, size=(8, 8)):
    ident = plan.item_id(str(number), "", {})
    return Item(ident, (f"{number}.png",), Entry(f"{number}.png", f"{number}.png"), "", size, str(number))


SIZES = st.lists(st.sampled_from([(8, 8), (8, 12), (12, 8), (16, 16)]), max_size=40)


FEW = settings(max_examples=25)


@FEW
@given(SIZES, st.integers(1, 6))
def test_chunks_hold_every_image_once_and_one_size(sizes, most):
    items = [item(j, size) for j, size in enumerate(sizes)]
    chunks = list(plan.chunks(items, lambda size: most))
    assert sorted(each.id for chunk in chunks for each in chunk.items) == sorted(each.id for each in items)
    for chunk in chunks:
        assert len({each.size for each in chunk.items}) == 1
        assert len(chunk.items) <= most
    for size in set(sizes):  # as few as can be
        assert sum(chunk.items[0].size == size for chunk in chunks) == -(-sizes.count(size) // most)


@FEW
@given(SIZES, st.integers(1, 6), st.randoms(use_true_random=False))
def test_what_is_done_changes_no_other_chunk(sizes, most, rng):
    items = [item(j, size) for j, size in enumerate(sizes)]
    chunks = list(plan.chunks(items, lambda size: most))
    left = [chunk for chunk in chunks if rng.random() < 0.5]
    waiting = {each.id for chunk in left for each in chunk.items}
    again = list(plan.chunks([each for each in items if each.id in waiting], lambda size: most))
    assert again == left


@FEW
@given(st.lists(st.text(max_size=5), unique=True, max_size=30), st.integers(1, 7))
def test_shards_share_the_names_among_them(names, of):
    owners = [[part for part in range(1, of + 1) if Share(part, of).has(name)] for name in names]
    assert all(len(each) == 1 for each in owners)


def test_shards_are_of_about_one_size():
    counts = [sum(Share(part, 4).has(f"{j}.png") for j in range(4000)) for part in range(1, 5)]
    assert min(counts) > 850


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "a/b", "1/0", "-1/3", "1/3/5", "1.0/2", ""])
def test_what_is_no_shard(text):
    with pytest.raises(ValueError, match="shard"):
        Share.parse(text)


def test_ids_depend_on_content_prompt_and_configuration():
    ids = {plan.item_id(*args) for args in (("a", "", {}), ("b", "", {}), ("a", "x", {}), ("a", "", {"size": 8}))}
    assert len(ids) == 4
    assert plan.item_id("a", "", {"x": 1, "y": 2}) == plan.item_id("a", "", {"y": 2, "x": 1})


def test_memory_says_how_many_run_at_once():
    most = plan.fitting(16 << 30)
    assert most((64, 64)) == plan.MOST
    assert most((512, 512)) == 4
    assert most((4096, 4096)) == 1


def test_a_folder_of_all_kinds(tmp_path):
    names = fill(tmp_path / "in", 14)
    prompts = {"prompts": {"0002.webp": "a cat"}, "prompt": "a dog"}
    at = run(tmp_path / "in", tmp_path / "out", **prompts)
    assert (at.images, at.before, at.done, set(at.errors)) == (17, 0, 14, BAD)
    results = batch.open(tmp_path / "out")
    assert sorted(results.rows) == names
    assert set(results) == set(names) - BAD
    assert {row["prompt"] for row in results.rows.values()} == {"a cat", "a dog"}
    assert results.rows["0002.webp"]["prompt"] == "a cat"
    assert "truncated" in results.errors["sub/cut.png"]
    assert "PNG, JPEG, WEBP" in results.errors["text.jpg"]
    for name in results:
        tensors, says = results.tensors(name)
        row = results.rows[name]
        assert says["note"] == str(int(row["id"][:16], 16) >> 1)  # the seed is the id's
        pixels = np.array(images.load(tmp_path / "in" / name))
        assert tensors["mean"].item() == pytest.approx(pixels.mean(), rel=1e-5)
        assert row["stats"]["width"] == pixels.shape[1]
    lines = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert sorted(line["name"] for line in lines) == names
    again = run(tmp_path / "in", tmp_path / "out", Toy(poison="a cat"), **prompts)  # it would fail, were it run
    assert (again.before, again.done, set(again.errors)) == (14, 0, BAD)


def test_names_are_relative_and_do_not_clash(tmp_path):
    for name in ("a.png", "sub/a.png", "sub/a.jpg", ".hidden.png", "sub/note.txt"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        picture(len(name)).save(tmp_path / "in" / name, format="PNG")
    at = run(tmp_path / "in", tmp_path / "in" / "out")  # results in the source, and left out of it
    assert set(batch.open(tmp_path / "in" / "out")) == {"a.png", "sub/a.png", "sub/a.jpg"}
    assert at.left == {".txt": 1}
    assert run(tmp_path / "in", tmp_path / "in" / "out").images == 3
    assert batch.run(tmp_path / "in", tmp_path / "flat", Toy()).images == 1


def test_two_files_of_one_content_are_run_once(tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a", "b", "c"):
        picture(5).save(tmp_path / "in" / f"{name}.png")
    at = run(tmp_path / "in", tmp_path / "out")
    rows = batch.open(tmp_path / "out").rows
    assert at.done == 3
    assert len({(row["file"], row["row"]) for row in rows.values()}) == 1
    assert batch.open(tmp_path / "out").tensors("c.png")[0]["beside"] == 1
    os.rename(tmp_path / "in" / "c.png", tmp_path / "in" / "d.png")
    assert run(tmp_path / "in", tmp_path / "out").before == 3  # another name, the same image
    assert batch.open(tmp_path / "out").tensors("d.png")[1] == batch.open(tmp_path / "out").tensors("a.png")[1]


def test_it_goes_on_as_if_never_stopped(tmp_path, monkeypatch):
    """Killed before and after every write there is, it ends with the same bits."""
    fill(tmp_path / "in", 20)
    run(tmp_path / "in", tmp_path / "whole")
    whole = contents(tmp_path / "whole")
    write, rng = shards.write_atomically, random.Random(0)

    def deadly(path, content):
        fate = rng.randrange(3)
        if fate == 0:
            (path.parent / f".{path.name}.0123abcd").write_bytes(content[: len(content) // 2])
            raise Killed
        write(path, content)
        if fate == 1:
            raise Killed

    killed = 0
    with monkeypatch.context() as patch:
        patch.setattr(shards, "write_atomically", deadly)
        patch.setattr(index, "write", lambda folder, rows: folder)  # a kill leaves no time for it
        while killed < 100:
            try:
                run(tmp_path / "in", tmp_path / "out")
                break
            except Killed:
                killed += 1
    assert killed > 4
    assert same(contents(tmp_path / "out"), {k: v for k, v in whole.items() if v[1] or k == "sub/cut.png"})  # no index
    run(tmp_path / "in", tmp_path / "out")
    assert same(contents(tmp_path / "out"), whole)


def test_new_images_leave_the_old_ones_alone(tmp_path):
    fill(tmp_path / "in", 6, bad=False)
    run(tmp_path / "in", tmp_path / "out")
    before = contents(tmp_path / "out")
    picture(100).save(tmp_path / "in" / "0000new.png")
    at = run(tmp_path / "in", tmp_path / "out")
    assert (at.before, at.done) == (6, 1)
    after = contents(tmp_path / "out")
    assert same({name: after[name] for name in before}, before)


def test_a_file_that_changed_is_run_again(tmp_path):
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "a.png"
    ids = []
    for number in (1, 2, 1):
        picture(number).save(path)
        run(tmp_path / "in", tmp_path / "out")
        ids.append(batch.open(tmp_path / "out").rows["a.png"]["id"])
    assert ids[0] == ids[2] != ids[1]
    assert len(list((tmp_path / "out" / "shards").iterdir())) == 2


def test_two_shards_share_a_folder(tmp_path):
    names = fill(tmp_path / "in", 20)
    parts = [run(tmp_path / "in", tmp_path / "out", shard=Share(part, 2)) for part in (1, 2)]
    assert sum(at.images for at in parts) == 23
    assert min(at.images for at in parts) > 5
    assert sorted(batch.open(tmp_path / "out").rows) == names
    assert set(batch.open(tmp_path / "out").errors) == BAD
    assert run(tmp_path / "in", tmp_path / "out").before == 20


def test_one_image_does_not_take_the_others_along(tmp_path, caplog):
    fill(tmp_path / "in", 8, bad=False, sizes=((8, 8),))
    prompts = {"0002.webp": "poison"}
    task = Toy(poison="poison")
    at = run(tmp_path / "in", tmp_path / "out", task, prompts=prompts)
    assert at.errors == {"0002.webp": "FloatingPointError: poison went wrong"}
    assert at.done == 7
    assert "each is run alone" in caplog.text
    with pytest.raises(ValueError, match="has no result: FloatingPointError: poison went wrong"):
        batch.open(tmp_path / "out")["0002.webp"]
    assert run(tmp_path / "in", tmp_path / "out", Toy(), prompts=prompts).failed == 1  # known, not tried again
    at = run(tmp_path / "in", tmp_path / "out", Toy(), prompts=prompts, retry=True)
    assert (at.failed, at.done, at.before) == (0, 1, 7)
    assert not batch.open(tmp_path / "out").errors


def test_stop_at_the_first_error(tmp_path):
    fill(tmp_path / "in", 8)
    with pytest.raises(ValueError, match=r"image 'empty\.png' is not one of"):
        run(tmp_path / "in", tmp_path / "out", on_error="stop")
    for name in ("empty.png", "text.jpg"):
        (tmp_path / "in" / name).unlink()
    with pytest.raises(ValueError, match=r"image 'sub/cut.png' cannot be read"):
        run(tmp_path / "in", tmp_path / "out", on_error="stop")
    (tmp_path / "in" / "sub" / "cut.png").unlink()
    assert run(tmp_path / "in", tmp_path / "out", on_error="stop").failed == 0
    with pytest.raises(FloatingPointError, match="went wrong"):
        run(tmp_path / "in", tmp_path / "other", Toy(poison="x"), prompt="x", on_error="stop")


def test_a_task_that_cannot_be_done_ends_the_run(tmp_path):
    class Impossible(Toy):
        def prepare(self, check):
            def run(images, prompts, seeds):
                raise ValueError("height must be a multiple of 8")

            return run

    fill(tmp_path / "in", 8)
    with pytest.raises(ValueError, match="multiple of 8"):
        run(tmp_path / "in", tmp_path / "out", Impossible())
    run(tmp_path / "in", tmp_path / "out")
    picture(50).save(tmp_path / "in" / "new.png")
    assert "multiple of 8" in run(tmp_path / "in", tmp_path / "out", Impossible()).errors["new.png"]  # now it is a row


def test_another_configuration_is_refused(tmp_path):
    fill(tmp_path / "in", 2)
    run(tmp_path / "in", tmp_path / "out")
    with pytest.raises(ValueError, match="made with size=None, now 8; take another folder"):
        run(tmp_path / "in", tmp_path / "out", Toy(size=8))


def test_sizes(tmp_path):
    fill(tmp_path / "in", 6, bad=False)
    picture(9, (30, 20)).save(tmp_path / "in" / "turned.jpg", exif=b"Exif\0\0" + exif(6))
    run(tmp_path / "in", tmp_path / "own")
    assert batch.open(tmp_path / "own").rows["turned.jpg"]["stats"]["width"] == 20
    assert {each.size for each in plan_of(tmp_path / "in")} == {(12, 8), (8, 12), (16, 16), (20, 30)}
    run(tmp_path / "in", tmp_path / "one", Toy(size=16))
    rows = batch.open(tmp_path / "one").rows
    assert {row["stats"]["width"] for row in rows.values()} == {16}
    assert [int(batch.open(tmp_path / "one").tensors(name)[0]["beside"]) for name in rows].count(4) == 4


def exif(orientation):
    found = Image.Exif()
    found[0x0112] = orientation
    return found.tobytes().removeprefix(b"Exif\0\0")


def plan_of(root):
    from invfast.batch import running

    entries, _ = source.entries(root, True)
    return list(running._scanned([(each, "") for each in entries], {}, None))


@pytest.mark.parametrize("ending", ["txt", "csv", "jsonl"])
def test_tables(ending, tmp_path):
    fill(tmp_path / "in", 4, bad=False)
    rows = [("in/0000.png", "a cat"), ("in/sub/0000.jpg", ""), ("in/missing.png", 'a, "dog"')]
    text = {
        "txt": "\n".join(name for name, _ in rows) + "\n\n",
        "csv": "\ufeffimage,prompt\n" + "".join(f'{a},"{b.replace(chr(34), chr(34) * 2)}"\n' for a, b in rows),
        "jsonl": "".join(json.dumps({"file_name": a, "text": b} if b else {"file_name": a}) + "\n" for a, b in rows),
    }[ending]
    (tmp_path / f"list.{ending}").write_text(text, encoding="utf-8")
    at = run(tmp_path / f"list.{ending}", tmp_path / "out", prompt="a bird")
    found = batch.open(tmp_path / "out").rows
    assert list(found) == ["in/0000.png", "in/missing.png", "in/sub/0000.jpg"]
    assert at.errors.keys() == {"in/missing.png"}
    assert "No such file" in at.errors["in/missing.png"]
    if ending == "txt":
        assert {row["prompt"] for row in found.values()} == {"a bird"}
    else:
        assert found["in/0000.png"]["prompt"] == "a cat"
        assert found["in/missing.png"]["prompt"] == 'a, "dog"'
        assert found["in/sub/0000.jpg"]["prompt"] == ("" if ending == "csv" else "a bird")


def test_prompts_of_other_images(tmp_path, caplog):
    fill(tmp_path / "in", 2, bad=False)
    with pytest.raises(ValueError, match=r"1 of 1 prompts name no image, 'in/0000\.png' is one; images are named as"):
        run(tmp_path / "in", tmp_path / "out", prompts={"in/0000.png": "a cat"})
    assert not (tmp_path / "out").exists()
    assert run(tmp_path / "in", tmp_path / "out", prompts={"0000.png": "a cat", "other.png": "a dog"}).done == 2
    assert "1 of 2 prompts name no image, 'other.png' is one" in caplog.text


def test_captions(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"file_name": "./sub/a.png", "text": "a cat"}\n')
    assert source.captions(tmp_path / "a.jsonl") == {"sub/a.png": "a cat"}
    (tmp_path / "b.csv").write_text("image,prompt\na.png\n")
    with pytest.raises(ValueError, match="row 1: expected texts 'image' and 'prompt'"):
        source.captions(tmp_path / "b.csv")
    with pytest.raises(FileNotFoundError, match="do not exist"):
        source.captions(tmp_path / "c.csv")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "", "no images in"),
        ("a.txt", "x.png\nx.png\n", "names 'x.png' twice"),
        ("a.csv", "name\nx.png\n", "row 1: expected a path as 'image'"),
        ("a.jsonl", "{", "cannot be read"),
        ("a.jsonl", "[1]", "expected an object a line"),
        ("a.jsonl", '{"image": 3}', "row 1: expected a path"),
        ("a.tsv", "x.png", "does not end in .txt, .csv, .jsonl, .parquet"),
    ],
)
def test_sources_that_are_none(name, content, message, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        run(tmp_path / name, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_empty_folder_says_what_it_has(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.psd").write_bytes(b"")
    with pytest.raises(ValueError, match=r"no images in .*\.png.*--recursive; it has other files: {'.psd': 1}"):
        batch.run(tmp_path / "in", tmp_path / "out", Toy())
    with pytest.raises(FileNotFoundError, match="does not exist"):
        batch.run(tmp_path / "none", tmp_path / "out", Toy())
    with pytest.raises(FileNotFoundError, match=r"no folder of results: it has no batch\.json"):
        batch.open(tmp_path / "in")


def test_names_that_are_no_text(tmp_path):
    (tmp_path / "in").mkdir()
    try:
        picture(0).save(os.fsencode(tmp_path / "in") + b"/a\xff.png", format="PNG")
    except (OSError, UnicodeError):
        pytest.skip("this file system takes no such names")
    run(tmp_path / "in", tmp_path / "out")
    assert list(batch.open(tmp_path / "out")) == ["a\\udcff.png"]


def test_parquet_needs_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"")
    with pytest.raises(ImportError, match=r'pip install "invfast\[parquet\]"'):
        run(tmp_path / "a.parquet", tmp_path / "out")
    fill(tmp_path / "in", 2)
    assert run(tmp_path / "in", tmp_path / "out").index.name == "index.jsonl"
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r'pip install "invfast\[ray\]"'):
        batch.Ray()


def test_a_table_that_holds_images(tmp_path):
    arrow = pytest.importorskip("pyarrow")

    names = fill(tmp_path / "in", 9)
    held = [{"bytes": (tmp_path / "in" / name).read_bytes(), "path": name} for name in names]
    texts = [f"text {j}" for j in range(len(names))]
    arrow.parquet.write_table(arrow.table({"image": held, "text": texts}), tmp_path / "a.parquet", row_group_size=5)
    at = run(tmp_path / "a.parquet", tmp_path / "out")
    run(tmp_path / "in", tmp_path / "folder", prompts=dict(zip(names, texts, strict=True)))
    assert at.errors.keys() == BAD
    assert at.index.name == "index.parquet"
    assert same(contents(tmp_path / "out"), contents(tmp_path / "folder"))
    plain = [each["bytes"] for each in held]
    arrow.parquet.write_table(arrow.table({"image": plain}), tmp_path / "b.parquet")
    numbers = {f"{names.index(name):08d}" for name in BAD}
    assert run(tmp_path / "b.parquet", tmp_path / "bytes").errors.keys() == numbers
    paths = arrow.table({"file_name": [f"in/{name}" for name in names]})
    arrow.parquet.write_table(paths, tmp_path / "c.parquet")
    assert run(tmp_path / "c.parquet", tmp_path / "paths").errors.keys() == {f"in/{name}" for name in BAD}
    arrow.parquet.write_table(arrow.table({"picture": [1]}), tmp_path / "d.parquet")
    with pytest.raises(ValueError, match="no column 'image' or 'file_name', but"):
        run(tmp_path / "d.parquet", tmp_path / "none")


def test_the_index_with_and_without_pyarrow(tmp_path, monkeypatch):
    pytest.importorskip("pyarrow")
    fill(tmp_path / "in", 8)
    run(tmp_path / "in", tmp_path / "out")
    before = contents(tmp_path / "out")
    monkeypatch.setattr(parquet, "installed", lambda: False)
    found = contents(tmp_path / "out")  # the shards know, but for what never came to one
    assert same(found, {name: each for name, each in before.items() if name in found})
    assert before.keys() - found.keys() == {"empty.png", "text.jpg"}
    run(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out" / "index.parquet").exists()
    assert same(contents(tmp_path / "out"), before)


def test_a_damaged_shard_is_run_again(tmp_path, caplog):
    fill(tmp_path / "in", 8)
    run(tmp_path / "in", tmp_path / "out")
    whole = contents(tmp_path / "out")
    for path in (tmp_path / "out").glob("index.*"):
        path.unlink()
    first, second, *_ = sorted((tmp_path / "out" / "shards").iterdir())
    first.write_bytes(first.read_bytes()[:100])
    second.unlink()
    at = run(tmp_path / "in", tmp_path / "out")
    assert "cannot be used, its images are run again" in caplog.text
    assert 0 < at.done < 8
    assert same(contents(tmp_path / "out"), whole)


@pytest.mark.parametrize("content", [b"{", b"[1]", b'{"name": "a"}', b"\xff"])
def test_a_damaged_index_is_made_anew(content, tmp_path, caplog):
    fill(tmp_path / "in", 8)
    whole = run(tmp_path / "in", tmp_path / "out").index
    before = contents(tmp_path / "out")
    whole.write_bytes(content)
    assert run(tmp_path / "in", tmp_path / "out").before == 8
    assert "made anew" in caplog.text
    assert same(contents(tmp_path / "out"), before)


def test_a_worker_travels(tmp_path):
    fill(tmp_path / "in", 4, bad=False, sizes=((8, 8),))
    worker = Worker(Toy(), tmp_path / "out", check=lambda: None)
    worker.ready()
    (chunk,) = plan.chunks(plan_of(tmp_path / "in"), lambda size: 4)
    again = pickle.loads(pickle.dumps(worker))
    assert again._run is None
    rows = again(chunk)
    assert [row["names"] for row in rows] == [list(each.names) for each in chunk.items]
    mine = worker(chunk)
    assert [(row["id"], row["file"]) for row in rows] == [(row["id"], row["file"]) for row in mine]
    assert list(tmp_path.rglob("*.safetensors")) == [tmp_path / "out" / rows[0]["file"]]
    from invfast.batch.cluster import pack, unpacked

    assert unpacked(chunk.id, pack(chunk)) == chunk


def test_decoding_stays_ahead_and_bounded():
    from invfast.batch.ahead import ahead

    begun = []
    source = iter(range(100))
    made = ahead(lambda j: begun.append(j) or j, source, 5, 2)
    assert [next(made) for _ in range(3)] == [0, 1, 2]
    assert next(source) <= 9  # no more were taken than were waited for
    made.close()
    count = len(begun)
    assert count <= 8


def test_an_interrupt_keeps_what_is_done(tmp_path):
    fill(tmp_path / "in", 20)
    calls = []

    def check():
        calls.append(1)
        if len(calls) > 23 + 4:
            raise KeyboardInterrupt

    at = batch.Progress()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "in", tmp_path / "out", progress=at, check=check)
    assert 0 < at.done < 20
    assert len(batch.open(tmp_path / "out")) == at.done
    assert at.index.is_file()
    more = run(tmp_path / "in", tmp_path / "out")
    assert more.before == at.done
    run(tmp_path / "in", tmp_path / "whole")
    assert same(contents(tmp_path / "out"), contents(tmp_path / "whole"))


def test_half_written_files_of_a_kill_are_swept_in_time(tmp_path):
    fill(tmp_path / "in", 2)
    run(tmp_path / "in", tmp_path / "out")
    old, new = (tmp_path / "out" / "shards" / f".a.safetensors.0123abc{j}" for j in (0, 1))
    for path in (old, new):
        path.write_bytes(b"")
    os.utime(old, (0, 0))
    run(tmp_path / "in", tmp_path / "out")
    assert new.exists()
    assert not old.exists()


def test_tensors_may_share_memory(tmp_path):
    shared = torch.arange(3.0)
    results = [batch.Result({"a": shared}), batch.Result({"a": shared[:2]}), None]
    row = {"names": ["x"], "prompt": "", "error": None, "seconds": 1.0, "stats": None}
    file = shards.write(tmp_path, "ab" * 32, [{**row, "id": str(j)} for j in range(3)], results)
    assert shards.read(tmp_path, file, 1)[0]["a"].tolist() == [0, 1]
    assert local.Local.share == 1


def test_files_of_others_stay(tmp_path):
    """Old hidden files in the results' folder, and tables that results would replace."""
    fill(tmp_path / "in", 2, bad=False)
    out = tmp_path / "out"
    run(tmp_path / "in", out, Toy())
    for name in (".zshrc.old.20240101", ".index.parquet.0123abcd"):
        (out / name).write_text("")
        os.utime(out / name, (0, 0))
    (out / ".conf.d.20240101").mkdir()
    run(tmp_path / "in", out, Toy())
    assert (out / ".zshrc.old.20240101").exists()
    assert not (out / ".index.parquet.0123abcd").exists()
    mine = tmp_path / "mine"
    shutil.copytree(tmp_path / "in", mine)
    table = mine / "index.jsonl"
    table.write_text("".join(json.dumps({"image": path.name}) + "\n" for path in sorted(mine.glob("*.*g"))))
    before = table.read_text()
    with pytest.raises(ValueError, match=r"index.jsonl' is no result of invfast and would be replaced; take another"):
        run(table, mine, Toy())
    with pytest.raises(ValueError, match="would be replaced"):
        run(tmp_path / "in", mine, Toy())
    assert table.read_text() == before
    assert not (mine / "batch.json").exists()


def test_an_index_that_is_damaged_is_made_anew(tmp_path, caplog):
    fill(tmp_path / "in", 3, bad=False)
    at = run(tmp_path / "in", tmp_path / "out", Toy())
    content = bytearray(at.index.read_bytes())
    content[4:-60] = bytes(len(content) - 64)
    at.index.write_bytes(content)
    again = run(tmp_path / "in", tmp_path / "out", Toy())
    assert (again.before, again.done) == (3, 0)
    assert len(batch.open(tmp_path / "out")) == 3


def test_one_image_that_fails_first_does_not_end_the_run(tmp_path):
    """Small ones run first, so the same one would end every run."""
    fill(tmp_path / "in", 4, bad=False, sizes=((8, 8), (16, 16), (16, 16), (16, 16)))
    first = plan_of(tmp_path / "in")[0].names[0]
    assert Image.open(tmp_path / "in" / first).size == (8, 8)
    how = {"prompts": {first: "bad"}, "recursive": True, "batch": 1}
    at = batch.run(tmp_path / "in", tmp_path / "out", Toy(poison="bad"), **how)
    assert (at.done, at.failed) == (3, 1)


def test_an_image_that_comes_back_is_done_the_next_time(tmp_path, monkeypatch):
    fill(tmp_path / "in", 3, bad=False)
    path = sorted(path for path in (tmp_path / "in").rglob("*.*") if path.is_file())[0]
    decode = worker.decode

    def gone(item, frame):
        return FileNotFoundError(str(path)) if item.entry.path == str(path) else decode(item, frame)

    monkeypatch.setattr("invfast.batch.local.decode", gone)
    at = run(tmp_path / "in", tmp_path / "out", Toy())
    assert (at.done, at.failed) == (2, 1)
    monkeypatch.undo()
    at = run(tmp_path / "in", tmp_path / "out", Toy())
    assert (at.before, at.done, at.failed) == (2, 1, 0)


def test_a_damaged_shard_is_made_again(tmp_path, caplog):
    fill(tmp_path / "in", 4, bad=False)
    run(tmp_path / "in", tmp_path / "out", Toy())
    whole = contents(tmp_path / "out")
    path = sorted((tmp_path / "out" / "shards").glob("*.safetensors"))[0]
    path.write_bytes(path.read_bytes()[:-9])
    at = run(tmp_path / "in", tmp_path / "out", Toy())
    assert at.done > 0
    assert f"shard {str(path)!r} cannot be used, its images are run again" in caplog.text
    assert same(contents(tmp_path / "out"), whole)


def test_results_do_not_go_where_the_images_are(tmp_path):
    fill(tmp_path / "in", 2, bad=False)
    for out in (tmp_path / "in", tmp_path):
        with pytest.raises(ValueError, match=r"results cannot go to .* lies; name another folder"):
            run(tmp_path / "in", out, Toy())
    run(tmp_path / "in", tmp_path / "in" / "out", Toy())
    os.symlink("loop2.png", tmp_path / "in" / "loop.png")
    os.symlink("loop.png", tmp_path / "in" / "loop2.png")
    at = run(tmp_path / "in", tmp_path / "in" / "out", Toy())
    assert (at.before, at.failed) == (2, 2)


def test_a_table_that_changes_is_read_anew(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    def write(count):
        held = []
        for j in range(count):
            into = io.BytesIO()
            picture(j).save(into, "PNG")
            held.append({"bytes": into.getvalue(), "path": f"{count}-{j}.png"})
        pyarrow.parquet.write_table(arrow.table({"image": held}), tmp_path / "t.parquet")

    write(1)
    assert run(tmp_path / "t.parquet", tmp_path / "out", Toy()).images == 1
    write(2)
    at = run(tmp_path / "t.parquet", tmp_path / "out", Toy())
    assert (at.images, len(at.errors)) == (2, 0)


def test_a_prompt_of_no_utf_8_is_written_out(tmp_path):
    fill(tmp_path / "in", 1, bad=False)
    at = run(tmp_path / "in", tmp_path / "out", Toy(), prompt="caf\udce9")
    assert at.done == 1


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"a.bin' cannot be written: No space left on device; make room"):
        write_atomically(tmp_path / "a.bin", b"x")
    assert not list(tmp_path.iterdir())
