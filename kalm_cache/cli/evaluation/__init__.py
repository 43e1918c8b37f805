"""`kalm-cache eval`: its options, what they ask for, and the indexes that it builds."""
