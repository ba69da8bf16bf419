"""Tests that start servers."""
