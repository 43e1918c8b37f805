"""What a request says of itself: its host, its path and method, how its body is coded. Knows nothing of endpoints."""
