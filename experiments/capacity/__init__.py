"""How much a cluster holds: the goal that a run has to meet, parts of a workload at any rate, and the search for the highest rate.

Used by `abkt capacity`; `abkt plan` takes the goal and the parts.
"""
