"""The third coder: a Karhunen-Loève transform of each head in the metric of the model's likelihood, then bit-planes.

basis.py is the calibration that it needs; transform.py, weights.py and planes.py are its three stages, and coder.py puts them together.
"""
