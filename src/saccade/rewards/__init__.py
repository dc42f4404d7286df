"""What an episode is worth: rewards, rubrics, answer rules and box metrics.

Invariant: a reward sees the episode and its sample, never tokens or a model; None is never 0.
A new reward is one decorated function; recipes find it by its name.
"""

from saccade.rewards.builtin import (
    answer,
    answer_lenient,
    answer_published,
    looked_at_evidence,
    per_turn,
    valid_calls,
)
from saccade.rewards.grounded import grounded_count, grounded_format, grounded_iou
from saccade.rewards.grpo_gr import grpo_gr_paper, grpo_gr_released
from saccade.rewards.judge import judge_reward
from saccade.rewards.rubric import Reward, Rubric, reward, reward_named

__all__ = [
    "Reward",
    "Rubric",
    "answer",
    "answer_lenient",
    "answer_published",
    "grounded_count",
    "grounded_format",
    "grounded_iou",
    "grpo_gr_paper",
    "grpo_gr_released",
    "judge_reward",
    "looked_at_evidence",
    "per_turn",
    "reward",
    "reward_named",
    "valid_calls",
]
