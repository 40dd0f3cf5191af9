"""The tags of the model of replies: what it foretells of what a world writes, pays and ends."""

from worldmtp.tracking.tag_table import scalar_rows

REPLY_TAGS = scalar_rows(
    "world_model",
    (
        "reply_nats",
        "minus log-likelihood of a turn's reply, reward and end by the member that has not seen the conversation, mean "
        "over the newest; with imagination=episodes, or imagination.search.through_replies",
        "nats/turn",
    ),
    ("reply_nats_before", "the same before learning: on the fresh batch and those just before it", "nats/turn"),
    ("reply_updates", "gradient steps of the model of replies before its held-out error rose", "steps"),
    ("reply_history", "1 if the model of replies that is asked sees the history, 0 if the last turn alone", "0 or 1"),
    ("reply_action_ratio", "held-out error with the words of other turns / held-out error; 1 = words ignored", "1"),
    (
        "reply_depth_{k}/top1",
        "share of replies whose k-th token is the most probable one to the member that has not seen the conversation, "
        "given the tokens before; over the newest; at evaluations",
        "share",
    ),
    (
        "reply_depth_{k}/accept",
        "mean probability of the real k-th token, the same way: acceptance where the world is sure, below it in chance",
        "probability",
    ),
    (
        "reply_depth_{k}/survival",
        "mean probability of the real reply up to its k-th token, the same way",
        "probability",
    ),
    ("reply_depth_{k}/ce", "mean of -log q of the real k-th token, the same way", "nats/token"),
    ("reply_depth_{k}/ece", "calibration error of the most probable k-th token, as that of depth_{k}", "probability"),
    (
        "reply_whole",
        "share of replies all of whose most probable tokens are the real ones, their end included",
        "share",
    ),
    ("reply_top1", "reply_depth_{k}/top1 over all tokens of replies", "share"),
    ("reply_accept", "reply_depth_{k}/accept over all tokens of replies", "probability"),
    ("reply_ece", "reply_depth_{k}/ece over all tokens of replies", "probability"),
    ("reply_end_ece", "calibration error of the probability that a turn ends the episode", "probability"),
    ("reply_reward_error", "root mean squared error of the mean reward foretold of a turn", "reward"),
    (
        "reply_tv",
        "1 - mean of min(1, M / W) of an answer (a reply, and whether it ends the conversation), M by the member that "
        "has not seen the conversation, W the share of conversations with the same text that were answered so; at "
        "evaluations. Where the world is sure, 1 - M",
        "probability",
    ),
    ("reply_kl", "mean of log W / M of an answer, the same way", "nats"),
    (
        "reply_survival",
        "mean over conversations of the product of min(1, M / W) over all answers, the policy's turns given",
        "probability",
    ),
    ("reply_wci", "mean of min(1, product of M / W): 1 - TV of whole conversations, or less in chance", "probability"),
    ("reply_h_eff", "answers of a conversation before the first that is not the real one", "answers"),
    ("reply_h_eff_tokens", "tokens of replies, their ends included, up to there", "tokens"),
    ("reply_entropy", "entropy of the prediction of an answer, from 8 drawn ones", "nats"),
    ("reply_turns", "answers of a conversation", "answers"),
    ("reply_surprise", "-log M of an answer less the entropy of its prediction; 0 of a right model", "nats"),
    ("reply_knows_turn", "-log M of another turn's reply less that of the turn's own; 0 = turns ignored", "nats"),
    ("reply_open_loop", "-log M of a reply after imagined replies less that after real ones", "nats"),
)
