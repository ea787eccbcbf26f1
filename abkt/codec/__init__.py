"""The codec turns the KV of a sequence into an embedded stream, and any prefix of it back into KV. For code that moves or studies KV.

Words used throughout:

cell     the KV of one (layer, K or V, head) over one tile of tokens: the unit that is coded (cells.py). A head wider than 128 channels is
         coded as several parts, each like a head of its own. A *kind* is K, V, or the one latent of MLA.
strip    the KV of one (layer, kind, head) over all tokens of a sequence: a row of cells. Statistics are kept per strip.
pass     one refinement of a cell: its next one or two bits per value.
slot     the bytes of one pass of one cell.
band     passes of many cells that are sent together, because all of them remove about the same distortion per byte (order.py).
cut      a place where a stream may end: after the metadata, or after a band.
verbatim KV that travels as it is, at full precision: the tokens at both edges of a sequence, and cells that cannot be coded.
class    a number for each cell: which of 16 variances its values have (fixed/quantize.py), or VERBATIM.
coder    the part that turns passes into bytes: fixed (packed bits, fast) or entropy (fewer bytes, slow).
backend  an implementation of the fixed coder's kernels: oracle (torch), compiled (C++) or Triton.
lossless the other mode, which changes no bit of the KV and cannot be cut (lossless/).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from abkt.lazy import exporter

if TYPE_CHECKING:
    from abkt.codec.calibration import Calibration
    from abkt.codec.codec import Codec, Expanded
    from abkt.codec.importance import Importance
    from abkt.codec.stream import Stream

__all__ = ["Calibration", "Codec", "Expanded", "Importance", "Stream"]
__getattr__ = exporter(
    __name__, {"Calibration": "calibration", "Codec": "codec", "Expanded": "codec", "Importance": "importance", "Stream": "stream"}
)
