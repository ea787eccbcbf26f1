"""Grids of simulations: their axes and points, the processes that run them, and the journal that makes them resumable."""
