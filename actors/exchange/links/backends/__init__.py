"""How one link carries its messages: TCP, gloo or NCCL. Each class fulfils the protocol `Link` in ../link.py.

Open tcp_link.py first: it is the default on CPUs, and the NCCL link is built on it.
"""
