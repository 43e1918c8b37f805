"""What an index folder holds: manifests, the live generation, its segments as one, tombstones. Knows no models."""
