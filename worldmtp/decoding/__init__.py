"""Decoding: lossless drafts, verified by the trunk; lossy ones; a beam; sessions that own a KV cache."""

from worldmtp.decoding.acceptance import LossyTopN, LossyTypical
from worldmtp.decoding.adaptive import AdaptiveLength
from worldmtp.decoding.beam import ParallelBeamOutput, parallel_beam
from worldmtp.decoding.generate import DecodingOutput, generate
from worldmtp.decoding.sampling import SamplingConfig
from worldmtp.decoding.session import DecodingSession

__all__ = [
    "AdaptiveLength",
    "DecodingOutput",
    "DecodingSession",
    "LossyTopN",
    "LossyTypical",
    "ParallelBeamOutput",
    "SamplingConfig",
    "generate",
    "parallel_beam",
]
