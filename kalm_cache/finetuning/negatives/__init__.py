"""Passages that stand in as negatives: found by the first stage, kept where they are probably not relevant."""
