"""An HTTP server without a file descriptor left waits, says so once, and serves again when there is one."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[3]
STARVED = """
    import logging, os, resource, socket, sys, threading, time
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route
    from abkt.serve.api import HttpServer
    from abkt.serve.api.listening import listen

    logging.basicConfig(level=logging.WARNING, format="%(name)s %(message)s", stream=sys.stdout)
    listening = listen("127.0.0.1", 0)
    made = HttpServer(Starlette(routes=[Route("/", lambda request: PlainTextResponse("here"))]))
    thread = threading.Thread(target=made.run, args=([listening],))
    thread.start()
    while not made.started:
        time.sleep(0.01)
    knocking = socket.socket()
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
    held = []
    try:
        while True:
            held.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        pass
    knocking.connect(listening.getsockname())
    knocking.sendall(b"GET / HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n")
    time.sleep(0.6)
    used_s = time.process_time()
    time.sleep(1.0)
    print("CPU", time.process_time() - used_s)
    for descriptor in held:
        os.close(descriptor)
    knocking.settimeout(30)
    said = b""
    while b"here" not in said and (data := knocking.recv(4096)):
        said += data
    print("SERVED" if b"here" in said else said)
    made.should_exit = made.force_exit = True
    thread.join()
"""


def test_a_server_out_of_descriptors_waits_says_so_once_and_recovers() -> None:
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(STARVED)], capture_output=True, text=True, timeout=120, cwd=ROOT)
    lines = run.stdout.splitlines()
    assert "SERVED" in lines, run.stdout + run.stderr
    assert [line for line in lines if "accepted" in line] == [
        "abkt.serve.api.server no HTTP connection can be accepted: Too many open files; trying again",
        "abkt.serve.api.server HTTP connections are accepted again",
    ]
    assert next(float(line.split()[1]) for line in lines if line.startswith("CPU")) < 0.7  # of a second: it does not spin
