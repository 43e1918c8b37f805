"""What a request body may hold, and how it becomes a request model."""
