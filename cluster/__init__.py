"""The service around the actors: commands, HTTP and gRPC, requests and the supervisor. It imports no torch.

Open `app.py` first for what is deployed, `__main__.py` for the commands, `ingress/service.py` for a request.
"""
