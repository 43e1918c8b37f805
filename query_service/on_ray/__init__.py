"""Shards and router on Ray Serve. All that the service knows of Ray is in here.

shard        what a replica of a shard's deployment does: the service of shards, asked by calls instead of HTTP
transport    how the router asks these deployments
application  an index and settings -> the application: a deployment for each shard, and the router before them
run          `kalm-cache serve --engine ray`: that application on a cluster, until a signal
"""
