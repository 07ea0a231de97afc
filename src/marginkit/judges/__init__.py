"""Grading by a language model behind an OpenAI-compatible endpoint: asked once, kept, within a budget; no torch."""
