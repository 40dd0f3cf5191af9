"""worldmtp.cli"""
