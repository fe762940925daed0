"""The three ops as Triton kernels for CUDA devices. Importing this package never imports triton; `load` does.

lincomb.py   out[m] = sum_k table[index, m, k] * inputs[k], and the same with its residual norms
anderson.py  sum_j a_j f_j with a = argmin |sum_j a_j r_j|^2, sum_j a_j = 1, per sample
launch.py    the torch operators `invfast_triton::*` that launch them
"""

from __future__ import annotations

from types import ModuleType


def load() -> ModuleType:
    """A namespace of the raw ops `lincomb`, `lincomb_residual`, `anderson_mix`; `invfast.ops` checks their arguments.

    Raises:
        ImportError: triton is not installed or does not import.
    """
    try:
        import triton  # noqa: F401
    except ImportError as error:
        raise ImportError(f'the Triton kernels need triton: {error} (pip install "invfast[triton]")') from error
    from invfast.kernels import launch

    return launch
