"""The entropy coder in Triton. Benches and tests use it; `Codec` codes on the CPU."""
