"""Runs an ingress replica in a process of its own, with endless streams open.

The process prints a line once all streams run. Arguments: token, number of streams, then the index and the
port of each dense actor.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator

from actors.protocol.messages import SamplingParams
from cluster.messages import DenseAddress, DenseAddresses
from cluster.openai.fields.output import OutputOptions
from cluster.openai.request import SequenceRequest
from cluster.requests.channel_pool import Channels
from cluster.requests.request import Deadlines, Request


async def main() -> None:
    token, num_streams = sys.argv[1], int(sys.argv[2])
    dense = tuple(
        DenseAddress(index=int(index), host="127.0.0.1", port=int(port))
        for index, port in zip(sys.argv[3::2], sys.argv[4::2], strict=True)
    )
    channels = Channels(0.75)
    await channels.update(DenseAddresses(version=1, token=token, dense=dense))
    while not all(channel.is_ready for channel in channels):
        await asyncio.sleep(0.01)
    streams = [_request(number, channels).deltas() for number in range(num_streams)]
    for stream in streams:
        await anext(stream)
    print("all streams run", flush=True)
    await asyncio.gather(*(_read(stream) for stream in streams))


async def _read(stream: AsyncGenerator[object, None]) -> None:
    async for _ in stream:
        pass


def _request(number: int, channels: Channels) -> Request:
    sequence_request = SequenceRequest(
        index=0,
        prompt_index=0,
        prompt_ids=(1, 2, 3),
        echo_text="",
        params=SamplingParams(max_tokens=1500, seed=number, ignore_eos=True),
        output=OutputOptions(),
        eos_token_ids=(),
    )
    return Request(
        f"doomed-{number}", [sequence_request], channels, Deadlines(total_seconds=600, resume_seconds=60)
    )


if __name__ == "__main__":
    asyncio.run(main())
