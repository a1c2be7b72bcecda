"""Synthetic echocardiograms: label maps, a diffusion model that draws from them, and its fidelity."""
