"""Scores as the official programs of benchmarks compute them: replies in, numbers out."""
