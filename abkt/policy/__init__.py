"""Decisions: numbers in, numbers out. No clock, no I/O, no SimPy, no torch, so both worlds run the very same objects."""
