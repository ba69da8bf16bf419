"""Tests of the repository itself: layers, documents, examples, the public surface."""
