"""ASGI middleware around the application: keys, limits, request ids, logs, metrics, traces, security headers."""
