"""A worker process: one model with one KV pool. It prefills or decodes, and changes between the two on the frontend's command.

`python -m abkt.serve.worker.main CONFIG`, with a WorkerConfig as `abkt.serve.messages` encodes it. It reports Ready each time it
takes a role. The frontend drains it before a change of role, so it then holds no request's data. It answers pings before it loads torch
and the model, so that a worker that freezes while it starts is noticed.
"""

from __future__ import annotations

import sys

from abkt.serve.commands import decode_config
from abkt.serve.reports import Ready
from abkt.serve.worker.control import PipeControl, pin


def main() -> None:
    config = decode_config(sys.argv[1])
    control = PipeControl()
    pin(config)
    from abkt.serve.worker.decode import DecodeWorker  # after the control, which answers pings from here on
    from abkt.serve.worker.equipment import equip
    from abkt.serve.worker.prefill import PrefillWorker

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
