"""Agents: rollout, PPO, imagination."""
