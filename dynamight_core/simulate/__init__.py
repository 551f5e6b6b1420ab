"""Simulated data sets: moving molecules, their images, and the truth of each particle."""
