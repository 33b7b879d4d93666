"""The flights example in PyTorch: DeepFM over tables, its dense layers under DistributedDataParallel."""
