"""The gRPC interface: `serving.proto` for clients, `admin.proto` for operators, and their generated modules.

Open `serving.proto` first; `python -m protos.generate` makes the modules anew.
"""
