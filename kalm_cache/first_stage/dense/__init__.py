"""Dense search: vectors -> a FAISS index -> nearest passages."""
