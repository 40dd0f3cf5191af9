"""The one table of metric tags: what each is, how it is estimated, in what unit.

Writers refuse a tag that no row matches, and ``docs/metrics.md`` is made from these rows, so nothing is logged that is
not documented. Make it again with

    python docs/metrics.py > docs/metrics.md

What a row is, and the placeholders of its tag: ``tag_table``. Steps are environment tokens; those of ``sft/*`` are
optimiser steps.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from worldmtp.tracking.inside_tags import ATTENTION_TAGS, HEAD_TAGS, TRUTH_TAGS
from worldmtp.tracking.reply_tags import REPLY_TAGS
from worldmtp.tracking.tag_table import TagRow, TagTable, scalar_rows

Layout = Mapping[str, Mapping[str, Sequence[Any]]]
"""TensorBoard's custom scalars: category -> chart -> ["Multiline" or "Margin", [tag patterns]]."""


_ROLLOUT = scalar_rows(
    "rollout",
    ("return_mean", "mean over episodes of the undiscounted sum of real rewards", "reward"),
    ("return_std", "standard deviation over episodes of the undiscounted sum of real rewards", "reward"),
    ("exact_mean", "share of episodes whose answer the task's scorer marks exactly right, sampled", "share"),
    (
        "components/{name}",
        "mean of one component of the task's scores, such as a reward of a rubric before its weight, over the sampled "
        "answers that have it",
        "score",
    ),
    ("length_mean", "mean over episodes of the tokens the policy wrote", "tokens"),
    ("truncated_fraction", "share of episodes cut off at the token budget", "share"),
    ("prompt_overlap_sft", "share of the pool's questions whose answers the warm start has shown; at step 0", "share"),
    (
        "tokens_per_forward",
        "tokens a row got from a trunk forward, mean over rows and rounds; with drafts, absent if none was asked for",
        "tokens",
    ),
    *(
        (name, f"{meaning}; with agent.rollout.act=search", unit)
        for name, meaning, unit in (
            (
                "search_trunk_tokens",
                "tokens of the trunk that searches took for each token, text apart",
                "tokens",
            ),
            ("search_kl", "mean over action tokens of log b / pi_old, drawn from b: KL(b || pi_old)", "nats"),
            ("importance_weight_mean", "mean over action tokens of pi_old / b, cut off; 1 before that", "1"),
            ("effective_sample_share", "(sum w)^2 / (n sum w^2) of these weights over n action tokens", "share"),
        )
    ),
    ("same_return_group_fraction", "share of prompt groups all of whose episodes have the same return", "share"),
)

_LOSSES = scalar_rows(
    "losses",
    ("policy", "clipped surrogate, averaged over action tokens", "1"),
    ("value", "value loss, averaged over action tokens", "see the value distribution"),
    ("entropy", "mean entropy of the policy over action tokens, before its coefficient", "nats"),
    ("kl_reference", "mean over action tokens of r - 1 - log r, r = pi_ref / pi (Schulman's k3)", "nats"),
    ("approx_kl", "mean over action tokens of r - 1 - log r, r = pi / pi_old (Schulman's k3)", "nats"),
    ("clip_fraction", "share of action tokens whose ratio lies outside the clip range", "share"),
    ("ratio_max", "largest pi / pi_old of an action token in any minibatch", "1"),
    ("num_updates", "gradient steps taken before the epochs or target_kl ended the update; with target_kl", "steps"),
    ("grad_norm", "global gradient norm before clipping", "1"),
    ("learning_rate", "mean over this update's gradient steps of the learning rate they used", "1"),
    ("explained_variance", "1 - Var(return - value) / Var(return) over action tokens", "1"),
    ("advantage_mean", "mean advantage over action tokens, before scaling", "reward"),
    ("advantage_std", "standard deviation of the same advantages", "reward"),
    (
        "observation",
        "mean of -log p, at temperature 1, over the tokens that a world replied, before its coefficient; with "
        "observation_coef",
        "nats/token",
    ),
    ("counterfactual", "all-action policy term over the live tokens, before its coefficient", "1"),
    ("search", "KL to the policy that a search improved, times its coefficient; with imagination=search", "nats"),
    ("total", "the weighted sum that was differentiated", "1"),
)

_WORLD_MODEL = scalar_rows(
    "world_model",
    ("loss", "sum of the world model's weighted losses on replayed real trajectories", "nats"),
    ("reward_loss", "cross-entropy of the binned reward head", "nats"),
    ("continuation_loss", "binary cross-entropy of the continuation head", "nats"),
    ("value_loss", "cross-entropy of the binned value head", "nats"),
    (
        "action_shuffle_loss_ratio",
        "loss with the actions permuted over states / loss, on fresh text; 1 = actions ignored",
        "1",
    ),
    ("grad_norm", "global gradient norm of the world model before clipping", "1"),
    ("depth_{k}/ce", "mean of -log q_k(realized token) over roots with k action tokens ahead", "nats/token"),
    ("depth_{k}/ce_chain", "mean of -log p of the same tokens by the trunk, one step ahead", "nats/token"),
    ("depth_{k}/gap", "ce - ce_chain: structural gap of depth k plus error of the head", "nats/token"),
    *(
        (f"depth_{{k}}/{part}{end}", f"{meaning}; {of}", "nats/token")
        for part, meaning in (
            ("structural", "what heads that average over the tokens in between cannot know, on held-out answers"),
            ("error", "ce less what such a head cannot know; of heads that are told the tokens it may be below 0"),
        )
        for end, of in (("", "middle of two bounds"), ("_lo90", "low end of the lower's"), ("_hi90", "of the upper's"))
    ),
    *(
        (f"depth_{{k}}/{ratio}{end}", f"{meaning}; {of}", "1")
        for ratio, meaning in (
            ("exposure", "loss rolled along the real tokens over that of the trunk that reads all anew, held-out"),
            ("context", "loss rolled along tokens of its own over that along the real ones, on held-out answers"),
            ("open_loop", "their product: loss along tokens of its own over that of the trunk"),
        )
        for end, of in (("", "over sequences"), ("_lo90", "low end"), ("_hi90", "high end"))
    ),
    ("depth_{k}/top1", "share of positions whose most probable predicted token is the realized one", "share"),
    ("depth_{k}/accept", "mean of min(1, q_k / p) at the realized token, an estimate of 1 - E[TV]", "probability"),
    ("depth_{k}/survival", "mean of prod_{j<=k} min(1, q_j / p): probability that k drafts survive", "probability"),
    ("depth_{k}/wci", "mean of min(1, prod_{j<=k} q_j / p) = 1 - total variation of the k-token paths", "probability"),
    ("depth_{k}/kl", "mean of sum_{j<=k} log p / q_j: KL of the k-token paths, trunk against heads", "nats"),
    ("depth_{k}/ece", "top-1 expected calibration error over equal-width bins of confidence", "probability"),
    ("depth_{k}/entropy", "mean entropy of the head's prediction", "nats"),
    (
        "depth_{k}/kl_trunk",
        "mean over replayed tokens k ahead of KL(trunk, head) at the temperature of acting; with world_model.kl_coef",
        "nats/token",
    ),
    (
        "depth_{k}/agreement",
        "share of the policy's tokens of which depth k and the trunk have the same greedy choice; up to 64 episodes of "
        "the fresh batch, before anything learns from it",
        "share",
    ),
    ("h_eff", "sum over depths of the survival: expected accepted tokens per root; if all depths have roots", "tokens"),
)

_IMAGINATION = scalar_rows(
    "imagination",
    ("slope", "eta: slope of return - baseline on the critic's correction S, over past batches; what is used", "1"),
    ("r2", "1 - Var(G - b - eta S) / Var(G - b) on the fresh batch, before anything trains on it", "1"),
    (
        "gradient_norm_ratio",
        "squared norm of the policy terms' gradient over that of its control, the same batch without imagination: "
        "their means are equal, so below 1 is variance saved; by imagination.gradient_norm_every",
        "1",
    ),
    ("gate_open", "1 if the imagined term is used in this update, else 0", "0 or 1"),
    ("kappa", "share of the group's mean in the shrunk group baseline, of advantage=group too, by past batches", "1"),
    ("corr", "Pearson correlation of the imagined baseline and the realized return-to-go over states", "1"),
    (
        "rung",
        "rung of the critic ladder that serves: the highest whose past r2 beats those below; 3: scored completions",
        "rung",
    ),
    ("rung_{i}/r2", "r2 of rung i on the fresh batch, before anything trains on it", "1"),
    ("rung_{i}/slope", "slope of rung i over past batches", "1"),
    ("rung_{i}/corr", "Pearson correlation of rung i's S and G - b over the fresh batch's episodes", "1"),
    ("rung_{i}/loss", "cross-entropy of rung i's critic on its replay; absent if that holds no token taken", "nats"),
    ("return_imagined", "mean imagined return at the first states of the episodes, by gamma", "reward"),
    ("return_realized", "mean realized return from the same roots, discounted as the imagined one is", "reward"),
    ("return_bias", "mean of imagined - realized return; positive = optimism", "reward"),
    ("return_corr", "Pearson correlation of imagined and realized return over episodes", "1"),
    ("return_ceiling", "best return_corr possible, as a realized return is one draw: from the groups' spread", "1"),
    (
        "turn_border_fraction",
        "share of imagined rollouts that stop before the horizon because the policy's turn is over; where worlds reply",
        "share",
    ),
    ("completions", "answers imagined to their end and scored; with imagination.completions", "answers"),
    ("imagined_tokens", "tokens imagined in this iteration", "tokens"),
    ("imagined_tokens_total", "tokens imagined since the start", "tokens"),
    ("num_live_mean", "mean number of candidate tokens that are imagined per state", "tokens"),
    ("tail_taken_fraction", "share of episodes that took a token outside the live set; with imagination.tail", "share"),
    (
        "tail_failure_fraction",
        "the same share of the episodes whose return is below the top of the value range; absent if there are none",
        "share",
    ),
    (
        "action_skill",
        "Pearson correlation of Q(s, a) - Q(s, a') with G - V(s): a is a real token, a' another sample, Q imagined at "
        "each depth; on the fresh batch, before anything trains on it; with imagination=latent",
        "1",
    ),
    (
        "search_skill",
        "Pearson correlation of A^(s, a) with G - V(s) over the searched states: a is the real token, A^ what the "
        "search says of it beyond its mean under the policy; on the fresh batch, before anything trains on it; with "
        "imagination=search",
        "1",
    ),
    ("search_kl", "mean KL(pi' || pi_old) of the policy that the search improved; with imagination=search", "nats"),
    (
        "path_weight",
        "mean weight of an imagined token, its chance of being alive included; 1 = trunk and heads agree, and no end",
        "1",
    ),
    ("return_range", "running range, 5th to 95th percentile, of the imagined lambda-returns", "reward"),
    ("optimism_gap", "mean over the last batches of imagined - real return; with imagination=episodes", "reward"),
    ("disagreement", "mean total variation of the ensemble over what the last imagined batch believes", "1"),
    ("unknown_fraction", "share of the last batch trained on whose episodes end paid for an unknown turn", "1"),
    ("batches_trained", "imagined batches that the policy was trained on in this iteration", "batches"),
    (
        "batches_flat",
        "imagined batches that were not trained on because their returns differ by no more than least_gap of the range",
        "batches",
    ),
    ("batches_trusted", "imagined batches that the optimism gap allows", "batches"),
    (
        "explores",
        "1 if imagination is paid for novelty, before the first reward or where it is lost, else 0",
        "0 or 1",
    ),
    ("return_promised", "mean return of the last imagined batch; novelty's bonus included while it explores", "reward"),
    (
        "heldout_{name}_real",
        "mean return, turns, or share that the world ended, of the held-out episodes of an evaluation; with "
        "imagination=episodes",
        "by name",
    ),
    ("heldout_{name}_imagined", "the same of episodes imagined from the same openings by the same policy", "by name"),
    ("imagined_turns", "turns of conversations imagined in this iteration", "turns"),
    (
        "losses/{name}",
        "the loss of that name over the last imagined batch that was trained on; kl_reference is the leash of latent",
        "see losses",
    ),
    ("imagined_to_real_ratio", "imagined tokens / real tokens of this iteration", "1"),
    ("weight_h{h}", "weight of the value expansion of horizon h", "1"),
    ("skill_h{h}", "1 - mean squared error at horizon h / mean squared error of the critic alone", "1"),
)

_EVAL = scalar_rows(
    "eval",
    ("exact", "share of held-out prompts answered exactly right, greedy decoding", "share"),
    ("exact_lo90", "lower end of its 90 % interval over prompts", "share"),
    ("exact_hi90", "upper end of its 90 % interval over prompts", "share"),
    ("exact_sampled", "share of held-out prompts answered exactly right, one sample each", "share"),
    ("score", "mean score of the task's scorer on held-out prompts, greedy decoding", "score"),
    ("score_sampled", "mean score of the task's scorer on held-out prompts, one sample each", "score"),
    (
        "components/{name}",
        "mean of one component of the task's scores on held-out prompts, greedy decoding, over answers that have it",
        "score",
    ),
    ("return_imagined", "mean over states of held-out answers of the imagined return-to-go", "reward"),
    ("return_realized", "mean over the same states of the realized return-to-go", "reward"),
    ("return_corr", "Pearson correlation of the two over states", "1"),
    ("return_kendall", "Kendall's tau-b of the two over states", "1"),
    ("return_optimism", "mean of imagined - realized return-to-go over states", "reward"),
    ("return_optimism_lo90", "lower end of its 90 % interval over prompts", "reward"),
    ("return_optimism_hi90", "upper end of its 90 % interval over prompts", "reward"),
    ("length_mean", "mean tokens of the answer", "tokens"),
    ("truncated_fraction", "share of answers cut off at the token budget", "share"),
    (
        "trunk_tokens",
        "tokens of the trunk, as one with a cache reads them, for a greedy answer by search; mean over prompts; with "
        "eval.act=search",
        "tokens",
    ),
    (
        "policy/{name}",
        "eval/{name} of the policy's own answers to the same prompts, beside those by search; with eval.act=search",
        "as eval/{name}",
    ),
)

_TIME = scalar_rows(
    "time",
    ("rollout_seconds", "wall clock of acting, decoding included", "s"),
    ("scoring_seconds", "wall clock of the task's scorer, as it counts it; within env_seconds", "s"),
    ("world_model_seconds", "wall clock of training the world model", "s"),
    ("imagination_seconds", "wall clock of imagining", "s"),
    ("completion_seconds", "wall clock of imagined answers, their scores included; in imagination_seconds", "s"),
    ("imagined_scoring_seconds", "wall clock of their scores alone", "s"),
    ("update_seconds", "wall clock of the policy's update", "s"),
    ("eval_seconds", "wall clock of held-out evaluation", "s"),
    ("total_seconds", "wall clock of the whole iteration", "s"),
    ("env_seconds", "wall clock inside the environment, its scorer included", "s"),
    ("env_fraction", "share of the iteration spent inside the environment, its scorer included", "share"),
    (
        "analysis_fraction",
        "share of a step that went into numbers nothing learns from, the analysis in its held-out evaluation included; "
        "of a trainer of TRL's, into those of its heads",
        "share",
    ),
    ("tokens_per_second", "real tokens generated / rollout_seconds", "tokens/s"),
)

_ENV = scalar_rows(
    "env",
    ("episodes", "episodes finished since the start", "episodes"),
    ("tokens", "tokens the policy has written since the start", "tokens"),
    ("scorer_calls", "calls of the task's scorer since the start", "calls"),
    ("imagined_scores", "calls of the scorer for imagined answers since the start, which scorer_calls lacks", "calls"),
    ("scorer_errors", "scorer calls that raised, since the start", "calls"),
    ("scorer_timeouts", "scorer calls that were cut off, since the start", "calls"),
)

_SFT = scalar_rows(
    "sft",
    ("loss", "training loss of the warm start", "nats/token"),
    ("mtp/loss_depth_{k}", "cross-entropy of depth k on the demonstrations, a mean per target", "nats/token"),
    ("mtp/top1_depth_{k}", "share of targets that depth k predicts first", "share"),
    (
        "mtp/acceptance_depth_{k}",
        "mean per target of sum_v min(p_v, q_v), the trunk's distribution p there and depth k's q; in evaluation, or "
        "where the objective compares the two",
        "probability",
    ),
    ("mtp/coef", "lambda, the coefficient of depths 2 .. K, a mean over the steps", "1"),
    (
        "mtp/gradient_cosine",
        "cosine between the gradients of the later depths' loss and of depth 1's by the trunk's last layer",
        "1",
    ),
    ("eval_mtp/loss_depth_{k}", "the same cross-entropy on held-out demonstrations", "nats/token"),
    ("eval_mtp/top1_depth_{k}", "the same share on held-out demonstrations", "share"),
    ("eval_mtp/acceptance_depth_{k}", "the same acceptance on held-out demonstrations", "probability"),
    ("learning_rate", "learning rate of the step", "1"),
    ("grad_norm", "global gradient norm before clipping", "1"),
    ("epoch", "passes over the demonstrations", "epochs"),
    ("{name}", "any other number that the trainer reports", "see the trainer"),
)

_TRL = scalar_rows(
    "trl",
    ("loss", "training loss of a trainer of TRL's, the heads' included; with post_training.trainer", "see the trainer"),
    (
        "mtp/loss_depth_{k}",
        "cross-entropy of depth k on the tokens that the heads learn, a mean per target",
        "nats/token",
    ),
    ("mtp/top1_depth_{k}", "share of these targets that depth k predicts first", "share"),
    ("mtp/accepted_depth_{k}", "share of the drafts made while sampling that were accepted up to depth k", "share"),
    ("{name}", "any other number that the trainer reports, by TRL's name", "see the trainer"),
    ("{group}/{name}", "the same, of a group", "see the trainer"),
    ("{group}/{of}/{name}", "the same, of a group of groups", "see the trainer"),
)

_RECORDS = (
    TagRow("imagination/predicted_{i}", "text i, and what each depth predicted, aligned by target", "-", "image"),
    TagRow("imagination/imagined_{i}", "text i, and what was imagined from each of its prefixes", "-", "image"),
    TagRow(
        "imagination/replies_{i}",
        "a real conversation, and what was foretold of its replies by the member that has not seen it",
        "-",
        "image",
    ),
    TagRow(
        "samples/imagined",
        "held-out episodes of lowest, middle and highest return, imagined ones from the same openings beside them",
        "-",
        "text",
    ),
    TagRow(
        "samples/{split}",
        "the first prompts of an evaluation, sampled answers and returns; of a world, at each evaluation, the first "
        "episodes turn by turn: who said what, the reward of each turn, the total",
        "-",
        "text",
    ),
    TagRow("run/{name}", "the resolved configuration, or a note on the run", "-", "text"),
    TagRow(
        "eval/entropy", "entropies of the policy at the tokens of its sampled held-out answers", "nats", "histogram"
    ),
    TagRow("rollout/return", "returns of the batch's episodes", "reward", "histogram"),
    TagRow("rollout/length", "lengths of the batch's answers", "tokens", "histogram"),
)

_CUSTOM = (
    TagRow("custom/{name}", "a number of your own", "yours"),
    TagRow("custom/{name}", "a text of your own", "-", "text"),
    TagRow("custom/{name}", "a picture of your own", "-", "image"),
    TagRow("custom/{name}", "values of your own", "yours", "histogram"),
)

TAGS = TagTable(
    (
        *(_ROLLOUT + _LOSSES + _WORLD_MODEL + REPLY_TAGS + _IMAGINATION + _EVAL),
        *(ATTENTION_TAGS + HEAD_TAGS + TRUTH_TAGS),
        *(_TIME + _ENV + _SFT + _TRL + _RECORDS + _CUSTOM),
    )
)
