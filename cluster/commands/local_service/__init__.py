"""One service on this host: its process session, its Serve application, its start-up view and its state file.

Open `application.py` first. `phimoe serve` uses all of these files; other commands find the service through
`run_state.py`.
"""
