"""The fixed coder: a nested quantiser whose passes are packed bits, and its backends (torch oracle, compiled C++, Triton).

`Codec` is the way to use it; benches and tests also call the backends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from abkt.lazy import exporter

if TYPE_CHECKING:
    from abkt.codec.fixed.coder import FixedCoder
    from abkt.codec.fixed.oracle import OracleBackend

__all__ = ["FixedCoder", "OracleBackend"]
__getattr__ = exporter(__name__, {"FixedCoder": "coder", "OracleBackend": "oracle"})
