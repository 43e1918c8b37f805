"""What all requests share: the live index, one computing thread, admission control, costs and budgets."""
