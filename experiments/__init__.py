"""The command line of ABKT (`abkt VERB …`) and its studies: all that knows Hydra, pandas and matplotlib.

Nothing in abkt or sim imports it. Its console script is abkt.console.
"""
