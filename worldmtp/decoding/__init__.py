"""Decoding: sessions that own a KV cache."""

from worldmtp.decoding.session import DecodingSession

__all__ = ["DecodingSession"]
