"""Files of training data → examples: a query with its relevant and its other passages, by id or as texts."""
