"""OpenAI's HTTP API in front of a service. `Endpoint` is the application, `HttpServer` serves it with limits, and `Text` is the model's
tokenizer. `abkt serve` and the tests of the API use it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from abkt.lazy import exporter

if TYPE_CHECKING:
    from abkt.serve.api.endpoint import Endpoint
    from abkt.serve.api.server import HttpServer
    from abkt.serve.api.text import Text

__all__ = ["Endpoint", "HttpServer", "Text"]
__getattr__ = exporter(__name__, {"Endpoint": "endpoint", "HttpServer": "server", "Text": "text"})
