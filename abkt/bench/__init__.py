"""`python -m abkt.bench`: what the kernels and transfers cost on this machine, each beside a plain copy of the same bytes.

It runs where only torch is installed, without Hydra. The verb `abkt bench` runs it too, and abkt.measure uses its cases and its timing.
"""
