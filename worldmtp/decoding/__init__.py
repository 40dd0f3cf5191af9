"""Decoding: lossless drafts, verified by the trunk; sessions that own a KV cache."""

from worldmtp.decoding.adaptive import AdaptiveLength
from worldmtp.decoding.generate import generate
from worldmtp.decoding.output import DecodingOutput
from worldmtp.decoding.sampling import SamplingConfig
from worldmtp.decoding.session import DecodingSession

__all__ = ["AdaptiveLength", "DecodingOutput", "DecodingSession", "SamplingConfig", "generate"]
