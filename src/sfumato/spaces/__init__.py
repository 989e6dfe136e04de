"""Where states live: what noise is there, which states are members, which coordinates count."""

from sfumato.spaces.euclidean import Euclidean

__all__ = ["Euclidean"]
