# SPDX-License-Identifier: MIT
"""How many NSM requests one guest thread gets answered in a second, beside the upstream device.

    python tests/bench/nsm.py [--runs 3]

Guests are started in turns with the same image: ours, and the QEMU that UPSTREAM_QEMU names (its attestation
documents are not signed). Without one the rows say so. The signature's own cost is measured alone, by the
same library on the same host, with documents and bare signatures in turns: `nsm-document --rate`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import cbor2
import machine
from common import Series, alternate, table

from nitroctl.base import accelerator
from nitroctl.testing.lab import Lab
from nitroctl.toolchain import cache, places

REQUESTS: dict[str, tuple[object, int]] = {
    "DescribePCR": ({"DescribePCR": {"index": 0}}, 20000),
    "GetRandom": ("GetRandom", 20000),
    "Attestation": ({"Attestation": {"user_data": None, "nonce": None, "public_key": None}}, 4000),
}


def rates(lab: Lab) -> dict[str, float]:
    """Requests per second of each kind in a fresh guest."""
    with lab.agent() as (_, agent):
        found = {}
        for name, (request, count) in REQUESTS.items():
            facts = agent.facts("nsm-loop", 1, count, cbor2.dumps(request).hex())
            if int(facts["ok"]) != count:
                raise SystemExit(f"{lab.qemu}: {facts['errors']} of {count} {name} requests were refused")
            found[name] = count * 1e6 / int(facts["us"])
        return found


def signature_rates(count: int) -> dict[str, float]:
    """`documents/s` and `signatures/s` on this host, without a guest."""
    folders = sorted(cache.entry("check", "x").parent.glob("check-plain-*/tests/unit/nsm-document"))
    if not folders:
        raise SystemExit("nsm-document is not built: tools/check unit")
    said = subprocess.run([folders[0], "--rate", str(count)], capture_output=True, check=True, text=True)
    return {name: float(value) for name, value in (line.split() for line in said.stdout.splitlines())}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", default=3, type=int)
    runs = parser.parse_args().runs
    binaries = {"ours": places.locate("qemu")}
    upstream = os.environ.get("UPSTREAM_QEMU")
    if upstream:
        binaries["upstream"] = Path(upstream)
    series = {(who, request): Series(request) for who in binaries for request in REQUESTS}

    def measure(who: str, lab: Lab) -> Callable[[], float]:
        def once() -> float:
            found = rates(lab)
            for request, rate in found.items():
                series[who, request].samples.append(rate)
            return found["DescribePCR"]

        return once

    with Lab(binaries["ours"], places.locate("vsock")) as lab:
        image = lab.image("agent")
        contenders = {}
        for who, binary in binaries.items():
            other = Lab(binary, lab.backend)
            other.folder, other.runtime = lab.folder, lab.runtime
            other._images[("agent", "own", None, 0)] = image
            contenders[who] = measure(who, other)
        alternate(contenders, runs)
    host = signature_rates(3000)
    rows = []
    for request in REQUESTS:
        mine = series["ours", request]
        value = f"{mine.median:8.0f}/s"
        if upstream:
            value += f"   {mine.median / series['upstream', request].median:.2f} of upstream's"
        else:
            value += "   upstream not measured: UPSTREAM_QEMU names no QEMU"
        rows.append((request, value))
    rows.append(("document, no guest", f"{host['documents/s']:8.0f}/s"))
    ratio = host["signatures/s"] / host["documents/s"]
    rows.append(("bare P-384 signature", f"{host['signatures/s']:8.0f}/s   a document costs {ratio:.2f}"))
    table(f"NSM requests from one guest thread ({accelerator.choose().name})", rows)

    table("The machine meanwhile", machine.rows())


if __name__ == "__main__":
    main()
