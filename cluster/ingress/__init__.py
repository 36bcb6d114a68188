"""One ingress replica: it takes requests over HTTP and gRPC, checks keys and limits, and streams the answers.

Open `service.py` first; `deployment.py` is what Ray Serve creates.
"""
