"""Requests and responses of every dialect, what errors look like, and one function an endpoint."""
