"""The service around the actors: commands, HTTP, gRPC, requests and the supervisor. It imports no torch.

Open `ingress/service.py` first; `app.py` is what Ray Serve deploys, `__main__.py` has the commands.
"""
