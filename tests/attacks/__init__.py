"""Builders of malicious and ugly files, and the tests that run them."""
