"""The cheapest split into prefill and decode instances that meets a goal: a search over the simulator that leaves out what cannot win.

Used by `abkt plan`.
"""
