"""Code that the verbs share: configuration, help, errors, manifests, result files, workloads, networks, and the simulation built from them.

Used by every other folder of experiments.
"""
