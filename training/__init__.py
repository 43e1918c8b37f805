"""How the bundled checkpoint and embedder were made; see README.md."""
