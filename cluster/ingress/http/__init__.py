"""The HTTP side of an ingress replica: a small ASGI application, its routes and their handlers.

Open `routes.py` first; `asgi.py` calls the handlers.
"""
