"""Process groups of explicit parts, for links and for the transport "all_to_all".

Open gloo.py first; nccl.py does the same on CUDA devices.
"""
