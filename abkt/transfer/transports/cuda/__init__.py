"""CUDA IPC between two processes of one host: GPU memory to GPU memory, without a copy in host memory.

Used through `make_transport("cuda_ipc")`. cuda_ipc.py is the transport; driver.py, memory.py and device_ring.py are its parts.
"""
