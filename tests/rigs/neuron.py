"""A scriptable neuron whose instances are engines of the test."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

from cortex_common.schema.engine_traits import OPENAI, EngineTraits
from cortex_common.schema.hardware import Discovery, HarnessInfo, Health
from cortex_common.schema.instances import InstanceId, InstanceState, ModelId, ModelInfo, NodeStatus
from rigs.server import serving


@dataclass
class ScriptedNeuron:
    """A listening neuron.

    Attributes:
        url: base URL of the neuron.
        heads: the request heads received so far.
        traits: the reported traits of its engines.
    """

    engines: Mapping[str, str]
    token: str | None = None
    traits: EngineTraits = OPENAI
    url: str = ""
    heads: list[bytes] = field(default_factory=list)

    def _discovery(self) -> Discovery:
        info = HarnessInfo(engine="scripted", traits=self.traits)
        return Discovery(hostname="n", os="Linux", kernel="", harness_info={"scripted": info})

    def _status(self) -> NodeStatus:
        return NodeStatus(
            health=Health(uptime_secs=1),
            models=tuple(
                ModelInfo(
                    id=ModelId(model),
                    harness="scripted",
                    status=InstanceState.READY,
                    instance_id=InstanceId(f"{model.replace('/', '-')}-0"),
                    url=url,
                    parallel=512,
                )
                for model, url in self.engines.items()
            ),
        )

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection: discovery requests, then an event stream if requested."""
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                self.heads.append(head)
                expected = f"authorization: Bearer {self.token}\r\n".lower().encode()
                if self.token is not None and expected not in head.lower():
                    writer.write(b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n")
                elif head.startswith(b"GET /events"):
                    break
                else:
                    body = self._discovery().model_dump_json().encode()
                    writer.write(
                        b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
                    )
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n")
            data = self._status().model_dump_json().encode()
            while True:
                writer.write(b"event: status\ndata: %b\n\n" % data)
                await writer.drain()
                await asyncio.sleep(0.5)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass


@contextlib.asynccontextmanager
async def scripted_neuron(
    engines: Mapping[str, str],
    *,
    token: str | None = None,
    tls: ssl.SSLContext | None = None,
    traits: EngineTraits = OPENAI,
) -> AsyncIterator[ScriptedNeuron]:
    """Run a neuron on a free loopback port; `engines` maps a model to the URL of its ready instance."""
    neuron = ScriptedNeuron(engines, token, traits)
    async with serving(neuron.serve, tls) as neuron.url:
        yield neuron
