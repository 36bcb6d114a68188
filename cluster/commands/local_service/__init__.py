"""One service on this host: its session of processes, its Serve application, its start-up view, its state file.

Open `application.py` first. `phimoe serve` uses all of these files; `run_state.py` is how other commands find it.
"""
