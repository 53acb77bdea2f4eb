"""A neuron for benchmarks that reports a fixed set of instances at a given URL.

The gateway under test is real. Its node has no engine, so that the mock backend of the benchmark can be used in its
place.
"""

from __future__ import annotations

import asyncio
import sys

from cortex_common.schema.hardware import Discovery, Health
from cortex_common.schema.instances import InstanceId, InstanceState, ModelId, ModelInfo, NodeStatus


def instances(url: str, models: int, copies: int) -> tuple[ModelInfo, ...]:
    """Return instances of a number of models, of which the first has `copies` instances and the others one each."""
    names = ["mock"] * copies + [f"other-{n}" for n in range(models - 1)]
    return tuple(
        ModelInfo(
            id=ModelId(name),
            harness="mock",
            status=InstanceState.READY,
            instance_id=InstanceId(f"{name}-{number}"),
            url=url,
            parallel=64,
        )
        for number, name in enumerate(names)
    )


async def serve(port: int, engine: str) -> None:
    """Serve /discovery and /events until cancelled."""
    discovery = Discovery(hostname="bench", os="Linux", kernel="", harnesses=("mock",))
    status = NodeStatus(health=Health(uptime_secs=1), models=instances(engine, 20, 8))

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if head.startswith(b"GET /events"):
                    break
                body = discovery.model_dump_json().encode()
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n")
            data = status.model_dump_json().encode()
            while True:
                writer.write(b"event: status\ndata: %b\n\n" % data)
                await writer.drain()
                await asyncio.sleep(1)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", port)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), sys.argv[2]))
