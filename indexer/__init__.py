"""Batch jobs: corpus -> published generation. Imports `kalm_cache`, never `query_service`."""
