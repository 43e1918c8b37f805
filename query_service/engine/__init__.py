"""What all requests share: the live index, one computing thread, admission, costs and budgets."""
