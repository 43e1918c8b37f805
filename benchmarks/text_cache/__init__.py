"""The text cache, measured: its file under churn, and a stream of requests with it and without."""
