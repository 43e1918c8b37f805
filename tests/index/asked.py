"""What the tests of an open index ask it, and how exactly it must answer."""

from __future__ import annotations

from tests.indexes import TEXTS

QUERIES = ["What is the capital of China?", "when does the ferry leave", ""]
IDS = list(TEXTS)
# Pooled states of length about 1 a value are off by 2⁻¹¹ (fp16) or 1/254 of the largest (int8); the margins of the
# random model move by a few times as much, its logits being some tens
TOLERANCE = {"fp16": 2e-2, "int8": 2e-1}
