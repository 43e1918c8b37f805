"""What endpoints ask for, whoever answers: an open index (`engine`), or the shards of one (`router`)."""
