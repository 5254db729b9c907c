"""`python -m gluepy.exec.executors.remote`: run one attempt, for an engine that starts a process for each.

The first line of standard input is the driver's text. Each later line renews the lease, and the line `cancel` or the
end of the input cancels the attempt. The reports are lines of standard output. `--own` says that the driver has started
it on its own machine.
"""

from __future__ import annotations

import os
import sys
import threading

from gluepy.exec.executors.remote.agent import Agent, Lease
from gluepy.loop import run_loop


def main() -> None:
    """Run it."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what else is printed must not get between the reports
    text, lease = sys.stdin.readline(), Lease()

    def tell(report: str) -> None:
        out.write(f"{report}\n")
        out.flush()

    def listen() -> None:
        for line in sys.stdin:
            if line.strip() == "cancel":
                break
            lease.renew()
        lease.cancel()

    async def run() -> None:
        async with Agent(str(os.getpid()), own="--own" in sys.argv[1:]) as agent:
            await agent.run(text, tell, lease)

    threading.Thread(target=listen, daemon=True).start()
    run_loop(run)
    os._exit(0)  # the thread holds standard input, which may never end


if __name__ == "__main__":
    main()
