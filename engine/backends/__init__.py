"""Backends: each compiles a model for one window shape and runs it."""
