"""Range coding with static tables (rANS): the oracle, which defines the bytes, compiled code and Triton kernels.

For the entropy coder, the lossless code and CacheGen's baseline, which call the functions of compiled.py.
"""
