"""One service on this host: its session of processes, its Serve application, its start-up view, its state.

Open `application.py` first. `phimoe serve` uses all of these files; other commands find the service by `run_state.py`.
"""
