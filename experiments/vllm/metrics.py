"""vLLM's Prometheus page as numbers."""

from __future__ import annotations

import httpx2
from prometheus_client.parser import text_string_to_metric_families


def scrape(url: str, client: httpx2.Client | None = None) -> dict[str, float]:
    """Each sample of a server: name, or name{source} and name{peer} where it has such a label, summed over all other labels."""
    return parsed((client or httpx2).get(f"{url}/metrics", timeout=30.0).text)


def parsed(page: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            label = sample.labels.get("source") or sample.labels.get("peer") or sample.labels.get("finished_reason")
            name = f"{sample.name}{{{label}}}" if label else sample.name
            found[name] = found.get(name, 0.0) + sample.value
    return found


def external_tokens(samples: dict[str, float]) -> float:
    """Prompt tokens whose KV came from another server."""
    return samples.get("vllm:prompt_tokens_by_source_total{external_kv_transfer}", 0.0)
