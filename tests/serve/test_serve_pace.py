"""The tokens of prompts in a step follow what steps were measured to take."""

from hebbline.serve.pace import FIRST_TOKENS, LEAST_TOKENS, LIMIT, Pace


def test_all_is_read_where_nobody_waits_for_a_token_and_little_where_nothing_is_known():
    pace = Pace(256)
    assert pace.budget(0) == 256
    assert pace.budget(3) == FIRST_TOKENS
    pace.record(0, 100, 0.1)
    pace.record(1, 0, 0.001)
    assert pace.budget(0) == 256
    assert pace.budget(1) == LEAST_TOKENS


def test_a_step_with_prompts_stays_below_the_limit_on_a_machine_of_any_speed():
    for usual, per_token in ((0.01, 0.0002), (0.001, 0.00001), (0.2, 0.004)):
        pace = Pace(10_000)
        for _ in range(30):
            tokens = pace.budget(4)
            pace.record(4, tokens, usual + per_token * tokens)
            pace.record(4, 0, usual)
        assert 0.9 * LIMIT < (usual + per_token * pace.budget(4)) / usual <= LIMIT


def test_a_small_most_is_kept():
    pace = Pace(4)
    pace.record(0, 4, 1.0)
    pace.record(1, 0, 0.001)
    assert pace.budget(1) == 4


def test_a_step_that_something_else_delayed_counts_for_nothing():
    pace = Pace(10_000)
    for _ in range(9):
        pace.record(4, 100, 0.01 + 100 * 0.0002)
        pace.record(4, 0, 0.01)
    planned = pace.budget(4)
    for _ in range(3):
        pace.record(4, 100, 1.0)
        pace.record(4, 0, 1.0)
    assert pace.budget(4) == planned


def test_a_long_prompt_delays_others_by_a_bounded_time_from_its_first_tokens_to_its_last():
    """A token takes more the more there are before it, as attention does: twenty times as much at the end."""
    pace, usual = Pace(256), 1.0
    pace.record(4, 0, usual)
    past, steps = 0, []
    while past < 3500:
        tokens = pace.budget(4)
        seconds = usual + tokens * (0.02 + 0.38 * past / 3500)
        pace.record(4, tokens, seconds)
        steps.append(seconds / usual)
        past += tokens
    assert max(steps) < 4
