"""`abkt serve`, whose prefill workers reach the decode workers through proxies. SOAK_PROXIES: where to ask for a proxy."""

from __future__ import annotations

import os
import sys
from dataclasses import replace

from abkt.serve.frontend.frontend import Frontend
from abkt.serve.reports import Ready, WorkerReport
from experiments.cli import main
from tests.serve.soak.proxies import proxied

take = Frontend._take


def through_a_proxy(self: Frontend, name: str, report: WorkerReport) -> None:
    if isinstance(report, Ready) and report.address:
        report = replace(report, address=proxied(report.address, os.environ["SOAK_PROXIES"]))
    take(self, name, report)


if __name__ == "__main__":
    Frontend._take = through_a_proxy  # type: ignore[method-assign]
    sys.argv[0] = "abkt"
    main()
