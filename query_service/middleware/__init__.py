"""What stands between the network and the service: keys, limits, request ids, logs, metrics, traces. Plain ASGI."""
