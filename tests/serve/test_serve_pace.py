"""The tokens of prompts in a step follow what steps were measured to take."""

import statistics

from hebbline.serve.pace import FIRST_TOKENS, LEAST_TOKENS, LIMIT, PLAIN_EVERY, Pace


def test_all_is_read_where_nobody_waits_for_a_token_and_little_where_nothing_is_known():
    pace = Pace(256)
    assert pace.budget(0) == 256
    assert pace.budget(3) == FIRST_TOKENS
    pace.record(0, 100, 0.1)
    assert pace.wants_plain(1), "what a step without prompts takes is measured first"
    pace.record(1, 0, 0.001)
    assert not pace.wants_plain(1)
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
        tokens = 0 if pace.wants_plain(4) else pace.budget(4)
        seconds = usual + tokens * (0.02 + 0.38 * past / 3500)
        pace.record(4, tokens, seconds)
        steps.append(seconds / usual)
        past += tokens
    assert max(steps) < 4


def test_a_step_is_kept_plain_under_a_load_that_has_prompts_in_every_one():
    """Sixteen streams whose steps are never without prompts, on a server that has known a single stream before."""
    pace, per_token = Pace(1000), 0.0004
    for _ in range(20):
        pace.record(1, 0, 0.012)
    budgets, plain_steps = [], 0
    for _ in range(20 * PLAIN_EVERY):
        plain_seconds = 0.065
        plain = pace.wants_plain(16)
        tokens = 0 if plain else pace.budget(16)
        pace.record(16, tokens, plain_seconds + per_token * tokens)
        plain_steps += plain
        budgets.append(tokens)
    assert budgets[:3] == [FIRST_TOKENS, 0, FIRST_TOKENS] and 19 <= plain_steps <= 20
    assert statistics.median(budgets) == int((LIMIT - 1) * 0.065 / per_token)


def test_a_plain_step_counts_for_numbers_of_requests_that_are_alike():
    """Streams come and go; only a few of the steps are kept plain for that."""
    pace, plain_steps = Pace(256), 0
    for step in range(10 * PLAIN_EVERY):
        generating = 16 - step % 6
        plain = pace.wants_plain(generating)
        tokens = 0 if plain else pace.budget(generating)
        pace.record(generating, tokens, 0.004 * generating + 0.0004 * tokens)
        plain_steps += plain
    assert plain_steps <= 20


def test_what_a_longer_text_makes_of_a_plain_step_is_seen():
    pace, latest = Pace(10_000), None
    for step in range(20 * PLAIN_EVERY):
        seconds = 0.01 if step < PLAIN_EVERY else 0.03
        tokens = 0 if pace.wants_plain(4) else pace.budget(4)
        pace.record(4, tokens, seconds + 0.0002 * tokens)
        if not tokens:
            latest = pace.plain_seconds(4)
    assert latest == 0.03


def test_guesses_are_left_out_of_a_plain_step_too():
    pace = Pace(256)
    plain_steps = 0
    for _ in range(4 * PLAIN_EVERY):
        plain = pace.wants_plain(1)
        drafts = 4 if not plain and pace.draft_pays(0.9, 1) else 0
        pace.record(1, 0, 0.01 + 0.0005 * drafts, drafts)
        plain_steps += drafts == 0
    assert plain_steps == 4
