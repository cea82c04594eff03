# SPDX-License-Identifier: MIT
"""An enclave in this process's foreground: Ctrl-C and its kin end it, and its end is the call's.

One that shall outlive the call that starts it has a process of its own: `supervisor`.
"""

from __future__ import annotations

import asyncio
import functools
import signal
from collections.abc import Callable, Iterable

from nitroctl.enclaves.lifecycle import EnclaveRun
from nitroctl.enclaves.plan import Plan, make_plan
from nitroctl.enclaves.records import Record
from nitroctl.enclaves.request import RunRequest
from nitroctl.enclaves.sink import Sink

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run(
    request: RunRequest | Plan,
    *,
    sinks: Iterable[Sink] = (),
    on_state: Callable[[Record], None] | None = None,
) -> Record:
    """Run an enclave to its end from the main thread. Ctrl-C, SIGTERM and SIGHUP end it. Returns its last
    record, of which nothing else is left."""
    todo = request if isinstance(request, Plan) else make_plan(request)

    async def main() -> Record:
        loop = asyncio.get_running_loop()
        enclave = EnclaveRun(todo, sinks=sinks, on_state=on_state)
        for number in STOP_SIGNALS:
            # Ignored ones stay ignored: nohup, and background jobs of scripts.
            if signal.getsignal(number) is not signal.SIG_IGN:
                text = f"stopped by {signal.Signals(number).name}"
                loop.add_signal_handler(number, functools.partial(enclave.stop, text, signum=number))
        return await enclave.run()

    return asyncio.run(main())
