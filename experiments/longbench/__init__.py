"""LongBench and retrieval tasks with transferred KV: the questions, their scores, and what the transfer costs.

Used by `abkt longbench` alone.
"""
