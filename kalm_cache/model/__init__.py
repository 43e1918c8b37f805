"""The model runtime: checkpoints, prompts, the encoder of passages and the decoder of queries."""
