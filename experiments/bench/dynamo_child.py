"""One run of Dynamo's offline mocker: `PYTHON dynamo_child.py REQUESTS NODES_OF_A_ROLE RATE ISL OSL ROUTER` prints JSON.

It imports nothing of this project, because the package needs an older pydantic and may live in an environment of its own. The mocker runs
with its own defaults: its polynomial of iteration times, blocks of 64 tokens, one event for each iteration.
"""

import json
import sys
import time


def main(requests: int, half: int, rate_per_s: float, isl: int, osl: int, router: str) -> dict[str, float]:
    from dynamo._core import run_mocker_synthetic_trace_replay

    began_s = time.process_time()
    result = run_mocker_synthetic_trace_replay(
        isl,
        osl,
        requests,
        prefill_engine_args={"engine": {"worker_type": "prefill"}},
        decode_engine_args={"engine": {"worker_type": "decode"}},
        num_prefill_workers=half,
        num_decode_workers=half,
        request_rate=rate_per_s,
        router_mode=router,
        arrival_seed=0,
    )
    loop_s = time.process_time() - began_s
    done = result.summary["completed_requests"]
    if done != requests:
        raise RuntimeError(f"the mocker completed {done} of {requests} requests")
    return {"requests_per_cpu_s": requests / loop_s, "cpu_s": time.process_time()}


if __name__ == "__main__":
    count, nodes, per_s, prompt, answer, by = sys.argv[1:]
    print(json.dumps(main(int(count), int(nodes), float(per_s), int(prompt), int(answer), by)))
