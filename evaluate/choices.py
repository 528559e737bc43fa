"""Questions with choices, in a model's tokens, as the field scores them.

By the lm-evaluation-harness's rules: a context and a choice are encoded together, and spaces at the context's end count
to the choice.
"""

from collections.abc import Iterable

from tokenizers import Tokenizer

from ..data.questions import Question
from ..runtime.choices import ChoiceScore, Continuation, TokenQuestion, choice_accuracy
from .targets import Target


def score_choices(target: Target, questions: Iterable[Question]) -> ChoiceScore:
    """Zero-shot accuracy of a target; InputError where there is no question."""
    tokenizer, eos_token_id, context = target.tokenizer, target.eos_token_id, target.context_length
    asked = (token_question(tokenizer, question, eos_token_id, context) for question in questions)
    return choice_accuracy(asked, target.scorer)


def token_question(
    tokenizer: Tokenizer, question: Question, eos_token_id: int | None, context_length: int
) -> TokenQuestion:
    """A question in tokens.

    Args:
        tokenizer: the model's.
        question: in text.
        eos_token_id: stands for an empty context, as it is what texts are told apart by; None: token 0.
        context_length: the most tokens that are read; of a longer context the last ones.
    """
    choices = (_continuation(tokenizer, question.context, choice, eos_token_id or 0) for choice in question.choices)
    most = context_length + 1  # the last token of a choice is predicted, and not read
    cut = tuple(Continuation(one.ids[-most:], min(one.predicted, most - 1), one.characters) for one in choices)
    return TokenQuestion(cut, question.answer)


def _continuation(tokenizer: Tokenizer, context: str, choice: str, eos_token_id: int) -> Continuation:
    text = context.rstrip()
    choice = context[len(text) :] + choice
    characters = max(1, len(choice.strip()))
    if not text:
        ids = tokenizer.encode(choice, add_special_tokens=False).ids
        return Continuation([eos_token_id, *ids], len(ids), characters)
    whole = tokenizer.encode(text + choice).ids
    # A choice that merges with the context's last token counts as that token.
    beginning = min(len(tokenizer.encode(text).ids), len(whole) - 1)
    return Continuation(whole, len(whole) - beginning, characters)
