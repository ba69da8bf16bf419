"""Tests of the repository itself: layers, docs, deployment files, and the public surface."""
