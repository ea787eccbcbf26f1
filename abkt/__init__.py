"""ABKT: adaptive-bitrate KV-cache transfer. Real kernels, real bytes, real processes.

Nothing is imported here, so that `import abkt.policy` or `import sim` loads no torch.
"""

__version__ = "0.1.0"
