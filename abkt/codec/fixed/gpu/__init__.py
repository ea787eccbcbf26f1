"""The Triton kernels of the fixed coder: encode.py and expand.py, and the steps and instructions of which they are made."""
