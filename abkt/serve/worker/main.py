"""A worker process: one model over one pool, in the role of prefill or decode, and of the other when its frontend says so.

`python -m abkt.serve.worker.main CONFIG`, with a WorkerConfig as JSON. It says `ready` in each role that it takes; it is
drained by its frontend before a change: nothing of any request is held here then.
"""

from __future__ import annotations

import json
import sys

from abkt.serve.control import Control, WorkerConfig, pin
from abkt.serve.worker.decode import DecodeWorker
from abkt.serve.worker.equipment import equip
from abkt.serve.worker.prefill import PrefillWorker


def main() -> None:
    config = WorkerConfig(**json.loads(sys.argv[1]))
    pin(config)
    control = Control()
    equipment = equip(config)
    role = config.role
    while role:
        worker: PrefillWorker | DecodeWorker
        if role == "decode":
            worker = DecodeWorker(config, control, equipment)
            address = worker.receiver.address
        else:
            worker, address = PrefillWorker(config, control, equipment), ""
        control.say("ready", role=role, address=address)
        role = worker.serve()


if __name__ == "__main__":
    main()
