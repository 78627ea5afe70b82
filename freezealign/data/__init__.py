"""Pairs from whatever holds them, and real sample data that needs no download hub."""
