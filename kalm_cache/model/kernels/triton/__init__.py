"""The kernels for CUDA in Triton: what native.cpp is for CPUs; torch_kernels.py says the same in torch."""
