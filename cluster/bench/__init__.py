"""`phimoe bench`: a load client for any server that speaks the OpenAI protocol.

command.py     flags -> Load; prints tables, writes JSON
workload.py    seed or dataset -> calls and arrival times. Pure.
client.py      one call over HTTP -> Outcome (the arrival time of every token)
sse.py         bytes -> server-sent events. Pure.
load.py        many calls: closed loop (concurrency) or open loop (rate)
decode.py      the decode rate of a batch
figures.py     outcomes -> throughput and latencies. Pure.
compare.py     the same load against several servers in turn
view.py        tables
"""
