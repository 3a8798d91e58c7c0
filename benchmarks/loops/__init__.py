"""The same trials by different loops: ours, the one a user writes today, and a floor in bare PyTorch."""
