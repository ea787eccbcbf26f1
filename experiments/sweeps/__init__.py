"""Grids of simulations: axes and points, the processes that run them, and the journal that makes a sweep resumable.

Used by `abkt sweep`, `abkt reproduce` and the notebooks.
"""
