"""What a figure can't be measured without."""

from __future__ import annotations


class Missing(Exception):
    """Names what is absent, and how to give it."""
