"""The router: one query → services that hold the shards of an index → one answer. Holds no index and no model."""
