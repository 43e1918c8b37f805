"""The one build: a corpus -> plan -> compute -> commit -> a sealed segment, published. Resumable."""
