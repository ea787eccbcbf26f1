"""A worker process: one model with one KV pool. It prefills or decodes, and changes between the two on the frontend's command.

`python -m abkt.serve.worker.main CONFIG`, with a WorkerConfig as `abkt.serve.messages` encodes it. It reports Ready each time it
takes a role. The frontend drains it before a change of role, so it then holds no request's data.
"""

from __future__ import annotations

import sys

from abkt.serve.commands import decode_config
from abkt.serve.reports import Ready
from abkt.serve.worker.control import PipeControl, pin
from abkt.serve.worker.decode import DecodeWorker
from abkt.serve.worker.equipment import equip
from abkt.serve.worker.prefill import PrefillWorker


def main() -> None:
    config = decode_config(sys.argv[1])
    pin(config)
    control = PipeControl()
    equipment = equip(config)
    role = config.role
    while role:
        worker: PrefillWorker | DecodeWorker
        if role == "decode":
            worker = DecodeWorker(config, control, equipment)
            address = worker.receiver.address
        else:
            worker, address = PrefillWorker(config, control, equipment), ""
        control.say(Ready(role, address))
        role = worker.serve()


if __name__ == "__main__":
    main()
