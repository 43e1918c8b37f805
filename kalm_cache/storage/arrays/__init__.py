"""Numbers and sorted texts in `.npy` files, mapped. Knows nothing of what they mean."""
