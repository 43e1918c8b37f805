"""A published index -> its next generation: reindex, add, delete, gc, rollback."""
