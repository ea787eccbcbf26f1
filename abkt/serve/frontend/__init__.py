"""The frontend of a cluster: it accepts requests, places them on workers, tracks them and writes their records. It runs no model.
`abkt.serve.cluster` and `abkt.serve.service` use it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from abkt.lazy import exporter

if TYPE_CHECKING:
    from abkt.serve.frontend.frontend import Frontend
    from abkt.serve.frontend.open_request import OpenRequest
    from abkt.serve.frontend.prompt import Prompt

__all__ = ["Frontend", "OpenRequest", "Prompt"]
__getattr__ = exporter(__name__, {"Frontend": "frontend", "OpenRequest": "open_request", "Prompt": "prompt"})
