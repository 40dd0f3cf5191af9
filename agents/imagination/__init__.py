"""What imagination is used for, one file per estimator, and what they share.

* ``counterfactual``: an all-action policy term; its critics and their features are in ``critic``;
* ``baseline``: imagined value expansion as a state-only baseline;
* ``imagined_returns``: the policy that is imagined to act, and returns from the states of a rollout.
"""
