"""A pytest plugin that puts AbktConnector into vLLM's own connector unit tests, where these ask for NixlConnector.

The tests are not part of this repository; with the source of vLLM 0.32.0 unpacked at SRC:

    cd SRC && ABKT_SUITE_MODEL=DIR PYTHONPATH=.:REPOSITORY .venv-vllm/bin/python -m pytest -p experiments.vllm.suite \
        tests/v1/kv_connector/unit/test_remote_prefill_lifecycle.py …

DIR: a model folder, in place of facebook/opt-125m. docs/vllm.md lists which tests apply.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

ADDRESS, PRINT = "127.0.0.1:9", "suite"


def pytest_configure(config: Any) -> None:
    """Change the helpers that the tests import."""
    utils: Any = import_module("tests.v1.kv_connector.unit.utils")
    make_config, make_scheduler, make_request = utils.create_vllm_config, utils.create_scheduler, utils.create_request

    def create_vllm_config(*arguments: Any, **named: Any) -> Any:
        if not arguments:
            named.setdefault("model", os.environ["ABKT_SUITE_MODEL"])
        if named.get("kv_connector", "NixlConnector") == "NixlConnector":
            named |= {"kv_connector": "AbktConnector", "kv_connector_module_path": "abkt.connect.vllm"}
            named.setdefault("kv_role", "kv_both")  # the tests use one scheduler for both sides
        return make_config(*arguments, **named)

    def create_scheduler(*arguments: Any, **named: Any) -> Any:
        from abkt.connect.vllm.handshake import Handshake

        scheduler = make_scheduler(*arguments, **named)
        if type(scheduler.connector).__name__ == "AbktConnector":
            scheduler.connector.set_xfer_handshake_metadata({0: Handshake(ADDRESS, PRINT)})
        return scheduler

    def create_request(*arguments: Any, **named: Any) -> Any:
        request = make_request(*arguments, **named)
        params = request.kv_transfer_params
        if params and params.get("do_remote_prefill"):
            tokens = request.num_prompt_tokens
            params |= {"abkt_addresses": [ADDRESS], "abkt_fingerprint": PRINT, "remote_num_tokens": tokens, "abkt_lossy": False}
        return request

    utils.create_vllm_config, utils.create_scheduler, utils.create_request = create_vllm_config, create_scheduler, create_request
