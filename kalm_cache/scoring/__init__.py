"""Texts -> pooled states, queries -> margins, margins -> ranked results. Knows nothing of index folders or HTTP."""
