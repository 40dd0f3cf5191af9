"""worldmtp.analysis"""
