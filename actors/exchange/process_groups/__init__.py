"""Process groups of torch that are made from explicit stores, for links and for the transport "all_to_all".

Open gloo.py first; nccl.py does the same on CUDA devices.
"""
