"""Tensor math: one equation a function."""
