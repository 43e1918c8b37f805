"""Requests and responses of every dialect, errors as HTTP, and one module for each endpoint."""
