"""The admin commands: `phimoe scale`, `rebalance`, `restart` and `drain`, over the admin routes of a running service."""
