"""Verbs about the simulator's costs: to measure them, to fit or import them from published tables, and to compare them with servers."""
