"""Published experiments, repeated: the same question, our figure, their ratio, and why they differ.

Used by `abkt reproduce` alone.
"""
