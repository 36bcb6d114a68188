"""`phimoe bench`: sends requests to any server with OpenAI's HTTP API, and measures throughput and latency.

Open `command.py` first; `load.py` sends the calls, `figures.py` computes the results.
"""
