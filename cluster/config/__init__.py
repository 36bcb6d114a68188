"""Everything that can be configured: `ClusterConfig`, the sources of its values, and environment variables.

Open `cluster_config.py` first.
"""
