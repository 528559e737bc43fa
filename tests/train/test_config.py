"""The `sparsity` block as it is written: by dataclasses, by mappings, in recipes; what is wrong is named."""

import json
from dataclasses import asdict

import pytest

from hebbline.artifacts import InputError
from hebbline.cli import main
from hebbline.train import SparsityConfig
from hebbline.train.dynamics import (
    FractionConfig,
    GroupConfig,
    RegrowthConfig,
    RemovalConfig,
    TopologyConfig,
    UpdateConfig,
)


def test_sections_may_be_mappings_as_in_recipes():
    written = SparsityConfig(
        method="chtss",
        topology={"kind": "brf", "r": 0.1},
        removal={"score": "RI", "temperature": [1, 3]},
        regrowth={"rule": "top"},
        fraction={"initial": 0.2},
        update={"every": 5, "stop": 50},
        groups=[
            {"layers": ["*.mlp.*"], "density": 0.1, "regrowth": {"score": "random"}, "fraction": {"kind": "constant"}}
        ],
    )
    group = GroupConfig(["*.mlp.*"], 0.1, regrowth=RegrowthConfig("random"), fraction=FractionConfig("constant"))
    assert written == SparsityConfig(
        method="chtss",
        topology=TopologyConfig("brf", r=0.1),
        removal=RemovalConfig("RI", temperature=(1, 3)),
        regrowth=RegrowthConfig(rule="top"),
        fraction=FractionConfig(initial=0.2),
        update=UpdateConfig(every=5, stop=50),
        groups=[group],
    )
    assert SparsityConfig(**json.loads(json.dumps(asdict(written)))) == written


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"update": {"evry": 5}}, r"no field 'sparsity\.update\.evry'; the fields are every, stop, warmup, early_stop"),
        ({"update": 5}, r"sparsity\.update must be a mapping of fields or a UpdateConfig, not 5"),
        ({"update": {"every": "5"}}, r"sparsity\.update\.every must be a whole number of steps, not '5'"),
        ({"topology": {"kind": "lattice"}}, "topology.kind 'lattice' is none of brf, bsw, bsf, csti, er, magnitude"),
        ({"topology": {"r": "wide"}}, r"topology\.r wide is outside"),
        ({"removal": {"rule": "sotf"}}, r"removal\.rule 'sotf' is none of soft, hard"),
        ({"removal": {"temperature": [1]}}, r"removal\.temperature must be \[first, last\]"),
        ({"regrowth": {"score": "CH9"}}, r"regrowth\.score 'CH9' is none of CH2_L3n"),
        ({"fraction": {"kind": "cubic"}}, r"fraction\.kind 'cubic' is none of cosine, constant"),
        ({"schedule": "sudden"}, "schedule 'sudden' is none of constant, sigmoid, cubic, linear"),
        ({"compute": "gpu"}, "compute 'gpu' is none of masked, links"),
        ({"structure": "4:8"}, "structure '4:8' is none of unstructured, 2:4, block"),
        ({"density": "0.3"}, "sparsity.density 0.3 is outside"),
        ({"decay_share": 0}, "sparsity.decay_share 0 is outside"),
        ({"exclude": "lm_head"}, r"sparsity\.exclude must be a list of globs such as .*, not 'lm_head'"),
        ({"groups": {"layers": ["*"]}}, r"sparsity\.groups must be a list of groups"),
        ({"groups": [{"density": 0.1}]}, r"sparsity\.groups\[0\] lacks the field 'layers'"),
        ({"groups": [{"layers": ["*"], "regrowth": {"scor": 1}}]}, r"no field 'sparsity\.groups\.regrowth\.scor'"),
        ({"method": "static", "schedule": "cubic"}, r"schedule 'cubic': static keeps its links, and so its density"),
        ({"method": "magic"}, "method 'magic' is none of dense, static, set"),
    ],
)
def test_what_is_wrong_is_named(given, message):
    with pytest.raises(InputError, match=message):
        SparsityConfig(**given)


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("task: language-model", ["--sparsity.method=magic"], "sparsity.method 'magic' is none of dense, static, set"),
        ("sparsity: {method: magic}", [], "sparsity.method 'magic' is none of dense, static, set, rigl"),
        ("sparsity: {removal: {rule: x}}", [], "sparsity.removal.rule 'x' is none of soft, hard"),
        ("task: image", ["--data.name=x"], "data.name 'x' is none of mnist, fashion-mnist, cifar-10, emnist"),
        ("", [], "recipe.yaml is empty: a recipe is a mapping of fields, of which 'task: language-model' is enough"),
        ("# nothing\n", ["--sparsity.density=0.1"], "recipe.yaml is empty"),
        ("optimization: {steps: 9}", [], "update.every 100 is past the last step, 9: chts would not update"),
        (
            "{optimization: {steps: 200}, sparsity: {method: gmp, update: {every: 50, stop: 400}}}",
            [],
            "update.stop 400 is past the last step, 200: the density would end at 0.388, not 0.3",
        ),
    ],
)
def test_a_recipe_is_refused_in_one_line(tmp_path, capsys, content, options, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(content)
    assert main(["train", str(path), "--out", str(tmp_path / "model"), *options]) == 2
    error = capsys.readouterr().err.strip()
    assert "\n" not in error and error.startswith("hebbline: error: ") and message in error
    assert list(tmp_path.iterdir()) == [path]
