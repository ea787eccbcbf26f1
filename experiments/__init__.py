"""The command line of ABKT (`abkt VERB …`) and its studies. Only this package uses Hydra, pandas and matplotlib.

Nothing in abkt or sim imports it; only the console script, abkt.console, starts it.
"""
