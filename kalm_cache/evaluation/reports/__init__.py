"""What was measured -> Markdown, JSON, plots."""
