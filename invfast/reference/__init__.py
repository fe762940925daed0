"""Every method written long-hand, each with its own loop: what the fast path is tested against. Imports torch only.

A model is a callable (x, t) -> its own output. A grid is a list of (t, abar_source, abar_target), data end first.
"""
