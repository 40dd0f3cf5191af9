"""Decoding: lossless drafts, verified by the trunk; lossy ones; a beam; sessions that own a KV cache."""

from worldmtp.decoding.adaptive import AdaptiveLength
from worldmtp.decoding.generate import generate
from worldmtp.decoding.lossy import LossyTopN, LossyTypical
from worldmtp.decoding.output import DecodingOutput
from worldmtp.decoding.parallel_beam import ParallelBeamOutput, parallel_beam
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
