"""Range asymmetric numeral systems (rANS) with static tables: the oracle, which defines the bytes, and compiled code.

For the entropy coder, the lossless code and the CacheGen baseline, which call the functions of compiled.py.
"""
