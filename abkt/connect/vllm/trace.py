"""What a worker did and when, as lines of JSON in a file: for measurements, and to look for the cause of a slow request.

Times are those of time.monotonic, so the lines of all processes of a host can be compared. A line has a `kind`:

step     a step that computes tokens begins. requests: (request, tokens computed before, tokens of this step)
kept     vLLM's blocks of a finished request were copied: tokens, added_s, copied_s
coded    its KV was coded: depth, raw_bytes, begin_s, end_s, and the curves slope and uniform as (bytes, distortion, bits)
loaded   KV is in the decode server's blocks: remote (the prefill server's name of the request), mode, bytes, raw_bytes, cut, distortion,
         asked_s, offered_s, committed_s, written_s
refined  a refinement has ended: bytes
"""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any


class Trace:
    """Thread-safe. path : the file, which is appended to; empty: none. Raises ValueError, one line, if it cannot be written."""

    def __init__(self, path: str = "") -> None:
        try:
            self._file = Path(path).open("a", buffering=1) if path else None  # noqa: SIM115  # until close
        except OSError as error:
            raise ValueError(f"trace {path} cannot be written: {error.strerror}") from None
        self._lock = threading.Lock()

    def __bool__(self) -> bool:
        return self._file is not None

    def write(self, kind: str, **values: Any) -> None:
        if self._file is not None:
            line = json.dumps({"kind": kind, **values})
            with self._lock:
                self._file.write(line + "\n")

    def close(self) -> None:
        if self._file is not None:
            with self._lock:
                self._file.close()
            self._file = None


def read(path: Path, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """(the complete lines from an offset on, where they end)."""
    if not path.exists():
        return [], offset
    with path.open("rb") as file:
        file.seek(offset)
        data = file.read()
    whole = data[: data.rfind(b"\n") + 1]
    return [json.loads(line) for line in whole.splitlines()], offset + len(whole)
