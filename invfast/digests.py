"""Digests of tensors and files."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

BLOCK = 1 << 14
"""Words of eight bytes that share a sum: 128 KiB, which stay in a core's cache for the three passes over them."""
SMALL = 1 << 9
"""Words of tensors that are so many that calls cost more than copies: biases and norms."""
CHUNK = 1 << 23
"""Words that a device takes at once: 64 MiB."""
FOLD = 29
"""By how much; no sign of one element of a word falls on another's."""


@torch.inference_mode()
def checksums(tensors: Sequence[torch.Tensor]) -> list[bytes]:
    """A checksum of each tensor's bytes, the same wherever it lies; a device is waited for once, at the end.

    Each block of words w has one sum modulo 2^64, of r_i (w_i xor (w_i >> FOLD)) with random odd r_i: SHA-256 over all
    of SD1.5 takes five times as long. Words are folded first, for what is changed in the topmost bit alone, a sign,
    would reach no other bit of the sum, and an even number of them none at all. Any one changed value changes its sum,
    and of other changes one in 2^30 does not; who wants to deceive is not kept out.

    Args:
        tensors: dense, of any dtype, on a CPU or a CUDA device; elsewhere they are copied to the CPU.
    """
    sums = [[] for _ in tensors]
    words = [_words(tensor.detach()) for tensor in tensors]
    for device in {each.device for each in words}:
        here = [(j, each) for j, each in enumerate(words) if each.device == device and each.numel()]
        parts = list(_parts(here, on_cpu=device.type == "cpu"))
        if not parts:
            continue
        owners = [owner for part, _ in parts for owner in part]
        found = torch.cat([each for _, each in parts]).cpu().split([count for _, count in owners])
        for (j, _), each in zip(owners, found, strict=True):
            sums[j].append(each.numpy().tobytes())
    return [b"".join(each) for each in sums]


Numbered = list[tuple[int, torch.Tensor]]
Part = tuple[list[tuple[int, int]], torch.Tensor]
"""Sums (n,), and before them whose they are: numbers of tensors, and how many are each one's."""


def _parts(words: Numbered, on_cpu: bool) -> Iterator[Part]:
    """The sums of one device's tensors, first of their whole blocks, then of what is left of each; none is waited for.

    On a CPU a copy costs more than a call; elsewhere many tensors are copied side by side and a few launches serve all.
    """
    whole, rest = [], []
    for j, each in words:
        size = each.numel()
        cut = size // BLOCK * BLOCK
        whole += [(j, each[:cut] if cut < size else each)] if cut else []
        rest += [(j, each[cut:] if cut else each)] if cut < size else []
    if on_cpu:
        for j, each in (*whole, *(pair for pair in rest if pair[1].numel() > SMALL)):
            rows = each.view(-1, BLOCK) if each.numel() >= BLOCK else each.unsqueeze(0)
            yield [(j, rows.shape[0])], _sums(rows)
        small = [(j, each) for j, each in rest if each.numel() <= SMALL]
        if small:
            yield [(j, 1) for j, _ in small], _sums_of_each([each for _, each in small])
        return
    for group in _groups(whole):
        rows = torch.cat([each for _, each in group]) if len(group) > 1 else group[0][1]
        yield [(j, each.numel() // BLOCK) for j, each in group], _sums_at_once(rows.view(-1, BLOCK))
    if rest:
        yield [(j, 1) for j, _ in rest], _sums_at_once(pad_sequence([each for _, each in rest], batch_first=True))


def _groups(whole: Numbered) -> Iterator[Numbered]:
    """Tensors that are copied side by side, CHUNK words or one tensor at a time."""
    group, size = [], 0
    for j, words in whole:
        if group and size + words.numel() > CHUNK:
            yield group
            group, size = [], 0
        group.append((j, words))
        size += words.numel()
    if group:
        yield group


def _words(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor's bytes as int64 (n,), filled up with zeros."""
    x = tensor if tensor.device.type in ("cpu", "cuda") else tensor.cpu()
    flat = x.contiguous().view(-1)
    if x.nbytes % 8 == 0 and flat.storage_offset() * flat.itemsize % 8 == 0:
        return flat.view(torch.int64)
    bits = flat.view(torch.uint8)  # a view at an odd offset cannot be read as words
    return torch.nn.functional.pad(bits, (0, -bits.numel() % 8)).clone().view(torch.int64)


def _sums(rows: torch.Tensor) -> torch.Tensor:
    """(n,) int64 sums of rows (n, at most BLOCK), int64, on a CPU.

    numpy's loops over one block after the other are 3 times as fast as torch's over all.
    """
    factors = _factors(rows.device)[: rows.shape[1]].numpy().view("uint64")
    sums = torch.empty(len(rows), dtype=torch.int64)
    into = sums.numpy().view("uint64")
    for j, row in enumerate(rows.numpy().view("uint64")):
        folded = row >> FOLD
        folded ^= row
        into[j] = folded.dot(factors)
    return sums


def _sums_of_each(words: list[torch.Tensor]) -> torch.Tensor:
    """(n,) int64 sums of n short runs of words."""
    factors = _factors(words[0].device)
    weighted = _folded(torch.cat(words)) * torch.cat([factors[: each.numel()] for each in words])
    ends = torch.tensor([each.numel() for each in words]).cumsum(0) - 1
    return weighted.cumsum(0)[ends].diff(prepend=torch.zeros(1, dtype=torch.int64))


def _sums_at_once(rows: torch.Tensor) -> torch.Tensor:
    return (_folded(rows) * _factors(rows.device)[: rows.shape[1]]).sum(1)


def _folded(words: torch.Tensor) -> torch.Tensor:
    return (words >> FOLD & (1 << 64 - FOLD) - 1) ^ words  # >> copies the sign


@functools.cache
def _factors(device: torch.device) -> torch.Tensor:
    random = bytearray(hashlib.shake_256(b"invfast").digest(8 * BLOCK))
    return (torch.frombuffer(random, dtype=torch.int64) | 1).to(device)


@torch.inference_mode()
def file_digest(path: Path) -> str:
    """SHA-256 over a file's size and checksum."""
    size = path.stat().st_size
    sha = hashlib.sha256(f"{size}|".encode())
    if size:
        sha.update(checksums([torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)])[0])
    return sha.hexdigest()


def tensor_digest(value: Any) -> str | None:
    """SHA-256 of a tensor's shape and values; None for what is no tensor."""
    if not isinstance(value, torch.Tensor):
        return None
    value = value.detach().to("cpu", torch.float64).contiguous()
    return hashlib.sha256(f"{tuple(value.shape)}".encode() + value.numpy().tobytes()).hexdigest()
