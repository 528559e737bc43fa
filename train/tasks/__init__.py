"""What can be trained."""

from .image_recipe import ImageRecipe
from .language_model import train_language_model
from .reading import read_recipe
from .recipe import LanguageModelRecipe
from .result import TrainingResult
from .translation_recipe import TranslationRecipe

__all__ = [
    "ImageRecipe",
    "LanguageModelRecipe",
    "TrainingResult",
    "TranslationRecipe",
    "read_recipe",
    "train_language_model",
]
