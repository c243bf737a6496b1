"""Denoisers, noise levels, preconditioning and the loss: the mathematics, without files or networks."""
