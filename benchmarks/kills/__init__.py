"""What `benchmarks.chaos` does, one file an item. Each kills real processes and counts what is lost or left over."""
