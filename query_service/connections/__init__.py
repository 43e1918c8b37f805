"""Connections: how many, how long each may take, and how they end. uvicorn speaks HTTP; here are its limits."""
