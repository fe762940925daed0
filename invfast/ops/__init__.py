"""The arithmetic between two network evaluations: three ops, their definitions and implementations."""

from invfast.ops.anderson_mix import anderson_mix
from invfast.ops.lincomb import lincomb, lincomb_residual
from invfast.ops.registry import NAMES, REFERENCE, Kernels, resolve, unavailable

__all__ = ["NAMES", "REFERENCE", "Kernels", "anderson_mix", "lincomb", "lincomb_residual", "resolve", "unavailable"]
