"""Reproducible streams of requests, what became of each, and what users need of them."""
