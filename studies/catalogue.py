"""All studies, by name."""

from ..artifacts import InputError
from .image import image_study, paper_study
from .language import LANGUAGE, LANGUAGE_LONG
from .language_paper import LANGUAGE_PAPER, LANGUAGE_PAPER_BFLOAT16
from .pretrained import PRETRAINED
from .study import Study
from .translation import TRANSLATION, TRANSLATION_LONG

STUDIES: dict[str, Study] = {
    study.name: study
    for study in (
        image_study("mnist"),
        image_study("fashion-mnist"),
        image_study("cifar-10"),
        paper_study("mnist"),
        paper_study("fashion-mnist"),
        LANGUAGE,
        LANGUAGE_LONG,
        LANGUAGE_PAPER,
        LANGUAGE_PAPER_BFLOAT16,
        PRETRAINED,
        TRANSLATION,
        TRANSLATION_LONG,
    )
}


def find_study(name: str) -> Study:
    """The study of that name; raises InputError where there is none."""
    if name not in STUDIES:
        raise InputError(f"there is no study '{name}'; there are {', '.join(STUDIES)}")
    return STUDIES[name]
