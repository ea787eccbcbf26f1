"""The verbs of the command line, one file each: its configuration class, and `main`, which plans, runs and reports.

A verb imports no other verb; what several verbs need is in lib or in the folder of a study.
"""
