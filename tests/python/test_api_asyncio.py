# SPDX-License-Identifier: MIT
"""An Enclave object in a program of asyncio, over fake programs. The rest of its life is test_api's."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from api_world import Make, maker
from enclave_fakes import HANG, HEARTBEAT, RESET, Bench
from nitroctl.enclaves.records import Ending
from nitroctl.vsock import sockets


@pytest.fixture
def make(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Make:
    return maker(bench, monkeypatch)


def test_asyncio(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with make(ports="5000:3") as enclave:
            reader, writer = await enclave.open_connection(5000)
            writer.write(b"over and back\n")
            assert await reader.readline() == b"over and back\n"
            writer.close()
            with pytest.raises(sockets.PortRefused, match="nobody listens on port 6000"):
                await enclave.open_connection(6000, timeout=0.1)
            with monkeypatch.context() as patch:
                patch.setattr(sockets, "RETRY_SECONDS", 0.01)
                patch.setattr(sockets, "open_connection", lambda uds, port: asyncio.sleep(HANG))
                with pytest.raises(TimeoutError, match="^no answer about port 7 of the enclave .* 0.01 s"):
                    await enclave.open_connection(7, timeout=0.01)

            def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                writer.write(b"welcome\n")
                writer.close()

            server = await enclave.start_server(handle, 9001)
            reader, writer = await asyncio.open_unix_connection(f"{enclave.uds}_9001")
            assert await reader.read() == b"welcome\n"
            writer.close()
            server.close()
        assert not enclave.running

    asyncio.run(main())


@pytest.mark.parametrize("by", ["the block", "a call", "another thread"])
def test_a_server_of_asyncio_ends_with_its_enclave(make: Make, by: str) -> None:
    """Its descriptor's number is another's by then: of a server that works."""

    async def main() -> None:
        def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"another")
            writer.close()

        enclave = make()
        async with enclave:
            early = await enclave.start_server(handle, 9001)
            (number,) = [sock.fileno() for sock in early.sockets]
            if by == "a call":
                enclave.close()
            elif by == "another thread":
                await asyncio.to_thread(enclave.close)
        assert not early.is_serving()
        others = [await asyncio.start_server(handle, "127.0.0.1", 0) for _ in range(8)]
        assert number in [sock.fileno() for other in others for sock in other.sockets]
        early.close()
        await early.wait_closed()
        for other in others:
            reader, writer = await asyncio.open_connection(*other.sockets[0].getsockname())
            assert await reader.read() == b"another"
            writer.close()
            other.close()

    asyncio.run(main())


def test_asyncio_does_not_wait_for_a_boot_that_nobody_wants(bench: Bench, make: Make, tmp_path: Path) -> None:
    fifo = tmp_path / "begun"
    os.mkfifo(fifo)

    async def main() -> None:
        enclave = make(["await", str(fifo)])

        async def enter() -> None:
            async with enclave:
                pytest.fail("it is up")

        task = asyncio.create_task(enter())
        # Opens once QEMU reads it.
        os.close(await asyncio.to_thread(os.open, fifo, os.O_WRONLY))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not enclave.running

    asyncio.run(main())
    assert bench.processes() == {} and bench.left() == []


def test_twins_for_asyncio(make: Make, tmp_path: Path) -> None:
    """The loop goes on meanwhile, and who does not wait any more holds nothing up."""
    fifo = tmp_path / "go"
    os.mkfifo(fifo)

    async def main() -> None:
        async with make(HEARTBEAT, ["print", "up\r\n"], ["await", str(fifo)], RESET) as enclave:
            assert (await enclave.console.wait_for_async("u(p)"))[1] == "p"
            with pytest.raises(TimeoutError, match="did not print"):
                await enclave.console.wait_for_async("down", timeout=0.05)
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(enclave.wait_async(), 0.05)
            ending = asyncio.ensure_future(enclave.wait_async(HANG))
            await asyncio.sleep(0)
            os.close(os.open(fifo, os.O_WRONLY))
            assert (await ending).ending is Ending.ORDERLY
        async with make() as enclave:
            abandoned = asyncio.ensure_future(enclave.console.wait_for_async("never", timeout=HANG))
            await asyncio.sleep(0)
            abandoned.cancel()
            await enclave.stop_async()
            assert enclave.record.message == "stopped by a call of stop()"

    asyncio.run(main())
