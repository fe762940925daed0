"""Digests of tensors and files."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

BLOCK = 1 << 14
"""Words of eight bytes that share a sum: 128 KiB, which stay in a core's cache for the three passes over them."""


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
    whole, rest, sums = [], [], [[] for _ in tensors]
    for j, tensor in enumerate(tensors):
        bits = tensor.detach()
        bits = (bits if bits.device.type in ("cpu", "cuda") else bits.cpu()).contiguous().reshape(-1).view(torch.uint8)
        cut = len(bits) // (8 * BLOCK) * (8 * BLOCK)
        whole += [(j, rows) for rows in [_words(bits[:cut]).view(-1, BLOCK)] if len(rows)]
        rest += [(j, words) for words in [_words(bits[cut:])] if len(words)]
    found = [(j, _sums(rows)) for j, rows in whole]
    for device in {words.device for _, words in rest}:
        here = [(j, words) for j, words in rest if words.device == device]
        if device.type == "cpu":
            found += [(j, _sums(words.unsqueeze(0))) for j, words in here]
        else:  # a launch for all, in place of four for each
            found += zip((j for j, _ in here), _sums(pad_sequence([w for _, w in here], True)).split(1), strict=True)
    for device in {each.device for _, each in found}:
        here = [(j, each) for j, each in found if each.device == device]
        every = torch.cat([each for _, each in here]).cpu().split([len(each) for _, each in here])
        for (j, _), each in zip(here, every, strict=True):
            sums[j].append(each.numpy().tobytes())
    return [b"".join(each) for each in sums]


def _words(bits: torch.Tensor) -> torch.Tensor:
    """Bytes (n,) as int64, filled up with zeros."""
    missing = -len(bits) % 8
    if missing:
        bits = torch.nn.functional.pad(bits, (0, missing))
    elif bits.storage_offset() % 8:
        bits = bits.clone()  # a view at an odd offset cannot be read as words
    return bits.view(torch.int64)


def _sums(rows: torch.Tensor) -> torch.Tensor:
    """(n,) int64 sums of rows (n, at most BLOCK), int64."""
    if rows.device.type != "cpu":
        return _sums_at_once(rows)
    # numpy's loops over one block after the other are 3 times as fast as torch's over all.
    factors = _factors(rows.device)[: rows.shape[1]].numpy().view("uint64")
    sums = torch.empty(len(rows), dtype=torch.int64)
    for j, row in enumerate(rows.numpy().view("uint64")):
        folded = row >> FOLD
        folded ^= row
        sums.numpy().view("uint64")[j] = folded.dot(factors)
    return sums


def _sums_at_once(rows: torch.Tensor) -> torch.Tensor:
    folded = (rows >> FOLD & (1 << 64 - FOLD) - 1) ^ rows  # >> copies the sign
    return (folded * _factors(rows.device)[: rows.shape[1]]).sum(1)


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
