"""The frontend of a cluster: it accepts requests, places them on workers, follows them, and writes their records; it computes nothing.
Used by `abkt.serve.cluster` and `abkt.serve.service`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from abkt.lazy import exporter

if TYPE_CHECKING:
    from abkt.serve.frontend.frontend import Frontend
    from abkt.serve.frontend.open_request import OpenRequest
    from abkt.serve.frontend.prompt import Prompt

__all__ = ["Frontend", "OpenRequest", "Prompt"]
__getattr__ = exporter(__name__, {"Frontend": "frontend", "OpenRequest": "open_request", "Prompt": "prompt"})
