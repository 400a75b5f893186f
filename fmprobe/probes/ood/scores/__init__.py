"""The out-of-distribution scores, one file a kind: each file holds its scores in `SCORES`, and `table.py` lists it."""
