"""vLLM with ABKT's connector on one machine: starting servers, a tiny model for them, a demonstration, and the measurement.

For the verbs pd-proxy and vllm-demo, for tests/connect, and `python -m experiments.vllm`.
"""
