"""The backends `torch` (CPU) and `torch_cuda`: gradients by autograd."""
