"""What imagination is used for, one file per estimator, and what they share.

* ``counterfactual``: an all-action policy term; its critics and their features are in ``critic``;
* ``baseline``: imagined value expansion as a state-only baseline;
* ``search``: a policy that a search has improved, to learn beside PPO;
* ``estimators``: which of them a config names, and the random streams;
* ``imagined_returns``: the policy that is imagined to act, and returns from the states of a rollout.
"""
