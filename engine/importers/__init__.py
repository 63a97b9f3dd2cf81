"""Readers of foreign graphs: each turns one representation into a `Graph`."""
