"""Validation of the simulator: predictions of runs that it was not calibrated on, against the runs themselves.

Used by `abkt validate` alone.
"""
