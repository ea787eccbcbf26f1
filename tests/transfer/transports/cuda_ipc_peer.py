"""The other process of test_cuda_ipc.py: `python cuda_ipc_peer.py WHAT ADDRESS LIBRARY`.

LIBRARY: path of the stand-in for the CUDA driver; empty to use the GPU's driver.

take: a receiver with device memory. It prints its address, then a digest of each transfer's bytes, until its stdin ends.
hold: connects, sends one byte from the device, prints "sent" and waits to be killed.
"""

import hashlib
import sys
import threading

import torch

from abkt.transfer.device.staging import to_host
from abkt.transfer.pieces import DevicePieces
from abkt.transfer.protocol.messages import Hello
from abkt.transfer.receive.receiver import Receiver
from abkt.transfer.transports.cuda.cuda_ipc import CudaIpc
from abkt.transfer.transports.cuda.driver import Driver, driver_of

LAYOUT = "model of the tests, 2 layers"
WAIT_S = 30.0


def main(what, address, library):
    transport = CudaIpc(Driver(library=library) if library else driver_of(0))
    device = "cpu" if library else "cuda"
    if what == "hold":
        connection = transport.connect(address, WAIT_S)
        byte = torch.full((1,), 7, dtype=torch.uint8, device=device)
        settled(device)
        connection.send([byte], lambda: None)
        say("sent")
        threading.Event().wait()

    def sink_of(peer, offer):
        """Every other 4096 bytes of a larger memory, so that there are many pieces."""
        memory = torch.zeros(2 * offer.size, dtype=torch.uint8, device=device)
        settled(device)
        return DevicePieces(memory[2 * at : 2 * at + min(4096, offer.size - at)] for at in range(0, offer.size, 4096))

    def committed(received):
        data = b"".join(map(to_host, received.sink.buffers(0, received.sink.size)))
        say(hashlib.sha256(data).hexdigest())

    receiver = Receiver(
        transport, address, Hello("decode-0", LAYOUT), sink_of, committed, lambda received, reason: say(f"aborted: {reason}")
    )
    say(receiver.address)
    sys.stdin.read()
    receiver.close()


def settled(device):
    if device == "cuda":
        torch.cuda.synchronize()


def say(line):
    print(line, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
