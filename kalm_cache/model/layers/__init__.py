"""The layers of a T5Gemma2 stack over packed rows: products, attention, and what a batch sees before it."""
