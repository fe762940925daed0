"""The arithmetic between two network evaluations; each file holds one op and its definition in plain torch."""

from invfast.ops.anderson_mix import anderson_mix
from invfast.ops.lincomb import lincomb, lincomb_residual

__all__ = ["anderson_mix", "lincomb", "lincomb_residual"]
