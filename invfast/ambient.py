"""State of torch around a call that is not among its arguments: what is set aside, and what is written down.

Autocast, another default device and inference mode belong to the caller's own arithmetic, not to a network that is
asked for by dtype and device: they are off while we work. TF32 and reduced precision are how the caller wants float32
computed everywhere; they stay, and are recorded.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

AUTOCAST = ("cpu", "cuda", "xpu", "mps")


@contextmanager
def neutral() -> Iterator[None]:
    """Torch as if nothing were set around; what the caller set comes back at the end. Also a decorator."""
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        for kind in AUTOCAST:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield


def switches() -> tuple[object, ...]:
    """Which kernels torch is told to take; what was recorded took those."""
    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
    attention = (
        cuda.flash_sdp_enabled(),
        cuda.mem_efficient_sdp_enabled(),
        cuda.math_sdp_enabled(),
        cuda.cudnn_sdp_enabled(),
    )
    own = id(torch.nn.functional.scaled_dot_product_attention)  # others put theirs in its place
    convolution = (cudnn.enabled, cudnn.benchmark, cudnn.deterministic)
    return (*attention, own, *convolution, torch.are_deterministic_algorithms_enabled())


def numerics(device: torch.device) -> str:
    """How torch is set to compute float32, and sums of half precision, on a device: plain words."""
    backends = torch.backends
    if device.type == "cuda":
        matmul, conv = backends.cuda.matmul.fp32_precision, backends.cudnn.conv.fp32_precision
        names = (
            "allow_fp16_reduced_precision_reduction",
            "allow_bf16_reduced_precision_reduction",
            "allow_fp16_accumulation",
        )
        sums = "".join(f", {name}={getattr(backends.cuda.matmul, name)}" for name in names)
    else:
        matmul, conv, sums = backends.mkldnn.matmul.fp32_precision, backends.mkldnn.conv.fp32_precision, ""
    plain = {"none": "ieee"}  # nothing was set
    return f"{device.type}: matmul {plain.get(matmul, matmul)}, conv {plain.get(conv, conv)}{sums}"
