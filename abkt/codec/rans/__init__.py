"""Range asymmetric numeral systems (rANS) with static tables: the oracle, which defines the bytes, compiled code and Triton kernels.

For the entropy coder, the lossless code and the CacheGen baseline, which call the functions of compiled.py.
"""
