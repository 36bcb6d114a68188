"""The gRPC side of an ingress replica, which uses the same `Service` as HTTP.

Open `serving.py` first; every call goes through `calls.py`.
"""
