"""LongBench and retrieval tasks on a model whose KV travels: what is asked, how it is scored, what it costs."""
