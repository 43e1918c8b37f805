"""Objects by path below a URL, in any kind of store, with its faults handled. Knows nothing of indexes or corpora."""
