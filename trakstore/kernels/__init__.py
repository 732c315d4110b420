"""Kernels: gram matrices of stored rows, their weights, what is stored of them, and their solvers."""
