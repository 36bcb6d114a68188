"""The configuration: `ClusterConfig`, the sources of its values, and the environment variables that are read.

Open `cluster_config.py` first.
"""
