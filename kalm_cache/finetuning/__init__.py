"""The decoder, trained on stored states: judged queries → a checkpoint with the same encoder, and a report."""
