"""Bytes from one node to another: frames, integrity, transports, a paced sender, a receiver. Not here yet: keys, resume, refinement."""
