"""Texts of requests → their states: each from the text cache or the encoder, once for all requests under way."""
