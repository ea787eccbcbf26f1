"""Connectors that move the KV of other people's engines over `abkt.transfer`: one folder for each engine, which alone imports it.

vllm     a KV connector for vLLM's prefill and decode servers.
lmcache  a serde for LMCache's stores.

`import abkt.connect` imports no engine.
"""
