"""The first steps of a runner, before anybody waits for them."""

from .runner import BLOCK_TOKENS, MixedRunner, PagedRunner, Runner, Segment

PROMPT_TOKENS = 64


def warm_up(runner: Runner) -> None:
    """Take a prompt, a token after it, and both at once where the runner can; what the cache held is overwritten.

    The first step of a kind is slower than those that follow: memory is committed, and arrays are bound.
    """
    tokens = min(PROMPT_TOKENS, runner.context_length - 1)
    if tokens < 1:
        return
    prompt = [index % runner.vocab_size for index in range(tokens)]
    runner.prefill(0, prompt, 0, [tokens - 1])
    runner.decode(0, prompt[:1], [tokens])
    if isinstance(runner, PagedRunner):
        blocks = -(-(tokens + 1) // BLOCK_TOKENS)
        if blocks < runner.num_blocks and runner.slots > 1:
            first = Segment(0, prompt[:1], tokens, (0,), range(blocks))
            runner.step([first, Segment(1, prompt[:1], 0, (), range(blocks, blocks + 1))])
    elif isinstance(runner, MixedRunner) and runner.slots > 1:
        runner.step([Segment(0, prompt[:1], tokens, (0,)), Segment(1, prompt[:1], 0, ())])
