"""lm-evaluation-harness, where it is installed, in front of the real server: its own client, and `hebbline eval`."""

import pytest
from gateways import running_gateway

openai_completions = pytest.importorskip(
    "lm_eval.models.openai_completions", reason="pip install 'lm_eval[api]' (lm-evaluation-harness)"
)


def test_log_likelihoods_and_completions_are_those_of_our_own_client(long_artifact, server, client):
    pytest.importorskip("tenacity", reason="pip install 'lm_eval[api]': what its clients of servers need")
    from lm_eval.api.instance import Instance

    from hebbline.serve.parameters import SamplingParameters

    with running_gateway(long_artifact, server, model_name="tiny") as gateway:
        model = openai_completions.LocalCompletionsAPI(
            model="tiny",
            base_url=f"{gateway.url}/v1/completions",
            tokenizer=str(long_artifact),
            max_length=512,
            batch_size=2,
        )
        pairs = [("the quick brown", " fox jumps"), ("a lazy", " dog"), ("sparse graphs", " grow links between")]
        scored = model.loglikelihood([Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)])
        until = ("the quick brown", {"until": [], "max_gen_toks": 6, "temperature": 0})
        (text,) = model.generate_until([Instance("generate_until", {}, until, 0)])
    for (context, continuation), (score, is_greedy) in zip(pairs, scored, strict=True):
        ids = model.tok_encode(context + continuation)
        beginning = len(model.tok_encode(context))
        assert score == pytest.approx(client.log_probs(ids)[beginning - 1 :].sum(), abs=1e-3)
        likely = client.complete(ids[:beginning], SamplingParameters(max_tokens=len(ids) - beginning)).token_ids
        assert is_greedy == (list(likely) == ids[beginning:])
    assert text == client.complete("the quick brown", SamplingParameters(max_tokens=6)).text


def test_a_server_is_evaluated_as_its_artifact_is(long_artifact, server):
    """`hebbline eval --harness` on both: the log-likelihoods and what is said of greedy choices agree."""
    from lm_eval.api.instance import Instance

    from hebbline.evaluate import open_target
    from hebbline.evaluate.harness import HarnessModel

    pairs = [("the quick brown", " fox jumps"), ("a lazy", " dog"), ("a lazy", " quick dog"), ("", "sparse graphs")]
    found = []
    for target in (open_target(f"grpc://{server.grpc_url}", tokenizer=long_artifact), open_target(str(long_artifact))):
        instances = [Instance("loglikelihood", {}, pair, 0) for pair in pairs]
        found.append(HarnessModel(target).loglikelihood(instances, disable_tqdm=True))
    for served, local in zip(*found, strict=True):
        assert served[0] == pytest.approx(local[0], abs=1e-3) and served[1] == local[1]
