"""Figures, one file each. The figN_ ones are drawn from stored tables by `make figures`, the others from a study's folder by its report."""
